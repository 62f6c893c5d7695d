"""The parts of the simulation import each other by name, here and in ``benchmarks.fault_schedules``."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
