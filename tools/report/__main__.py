"""python -m tools.report [FOLDER]: see the package."""

import argparse

from tools import report
from tools.report.pages import RESULTS, write_report

parser = argparse.ArgumentParser(prog="python -m tools.report", description=report.__doc__)
parser.add_argument("folder", nargs="?", default=RESULTS, help="of the rows (data/results)")
print("\n".join(map(str, write_report(parser.parse_args().folder))))
