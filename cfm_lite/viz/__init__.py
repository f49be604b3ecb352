from cfm_lite.viz.plane import *
from cfm_lite.viz.style import *
