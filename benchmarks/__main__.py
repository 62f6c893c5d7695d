"""The names of the benchmarks, one a line.

The demo is left out, a run of its own (`make demo`), the check of a GPU, which needs one, and the workloads, which are
what others run.
"""

import pkgutil

import benchmarks

for module in pkgutil.iter_modules(benchmarks.__path__):
    if not module.ispkg and not module.name.startswith("_") and module.name not in {"demo", "gpu", "workloads"}:
        print(module.name)
