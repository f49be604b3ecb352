from tests import shapes

shapes.enforce()
