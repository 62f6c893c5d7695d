"""Production rollout under a virtual clock: simulated engines, environments and learner around the real scheduler.

Only what stands at the edges is simulated here. Admission, groups, buffer, ledger, scheduler, episodes, router and the
pipeline are imported from ``roll_core.rollout`` and ``roll_core.engines`` and run as they are.
"""
