"""python -m tools.report [FOLDER]: see the package."""

import argparse

from cfm_lite.errors import CFMError
from tools import report
from tools.report.pages import RESULTS, write_report

parser = argparse.ArgumentParser(prog="python -m tools.report", description=report.__doc__)
parser.add_argument("folder", nargs="?", default=RESULTS, help="of the rows (data/results)")
try:
    print("\n".join(map(str, write_report(parser.parse_args().folder))))
except CFMError as error:
    raise SystemExit(f"error: {error}") from None
