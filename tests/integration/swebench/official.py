"""Images under SWE-bench's official names, as small as they can be: a repository of two files at /testbed that belongs
to root, its history with the solution in a branch, and a conda environment without which no test runs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from envs.swebench.judge.grading import END_MARKER, START_MARKER
from envs.swebench.judge.rows import image_name
from rock.runtimes.images import build_image, docker_client

CODE = "def twice(a):\n    return a - a\n\n\ndef least(a, b):\n    return min(a, b)\n"
TESTS = "import calc\n\n\ndef test_least():\n    assert calc.least(1, 2) == 1\n"
TEST_PATCH = """diff --git a/tests/test_calc.py b/tests/test_calc.py
--- a/tests/test_calc.py
+++ b/tests/test_calc.py
@@ -3,3 +3,7 @@
{context}
 def test_least():
     assert calc.least(1, 2) == 1
+
+
+def test_twice():
+    assert calc.twice(4) == {}
"""
# What miniconda brings: `activate` makes `conda` a function, and that puts the environment's programs first.
ACTIVATE = 'conda() { export CONDA_DEFAULT_ENV="$2" PATH="/opt/miniconda3/envs/$2/bin:$PATH"; }\n'
PYTEST = """#!/usr/bin/env python3
import sys
sys.path.insert(0, "/testbed")
namespace = {}
exec(open("/testbed/tests/test_calc.py").read(), namespace)
failed = 0
for name in sorted(n for n in namespace if n.startswith("test_")):
    try:
        namespace[name]()
    except AssertionError:
        failed = 1
        print(f"FAILED tests/test_calc.py::{name} - assert")
    else:
        print(f"PASSED tests/test_calc.py::{name}")
sys.exit(failed)
"""
DOCKERFILE = """ARG BASE
FROM ${BASE}
COPY activate /opt/miniconda3/bin/activate
COPY pytest /opt/miniconda3/envs/testbed/bin/pytest
COPY calc.py /testbed/calc.py
COPY test_calc.py /testbed/tests/test_calc.py
RUN chmod +x /opt/miniconda3/envs/testbed/bin/pytest && cd /testbed && export HOME=/tmp \\
    && git config --global user.name t && git config --global user.email t@t \\
    && git init -q && git add -A && git commit -qm broken && git checkout -qb solution \\
    && sed -i 's/a - a/a @ a/' calc.py && git commit -qam "the solution" && git tag future \\
    && git checkout -q - && echo built > left-over.txt
WORKDIR /testbed
"""


def row(instance_id: str, operator: str, *, older: bool) -> dict[str, Any]:
    """An instance whose function subtracts where it should apply ``operator``. The older format says neither image
    nor how it is evaluated: that is known of flask 2.3."""
    patch = (
        "diff --git a/calc.py b/calc.py\n--- a/calc.py\n+++ b/calc.py\n@@ -1,5 +1,5 @@\n def twice(a):\n"
        f"-    return a - a\n+    return a {operator} a\n \n \n def least(a, b):\n"
    )
    test_patch = TEST_PATCH.format(8 if operator == "+" else 16, context=" ")
    made = {
        "instance_id": instance_id,
        "repo": "pallets/flask",
        "base_commit": "HEAD",
        "version": "2.3",
        "problem_statement": "twice is wrong.",
        "patch": patch,
        "test_patch": test_patch,
        "FAIL_TO_PASS": json.dumps(["tests/test_calc.py::test_twice"]),
        "PASS_TO_PASS": json.dumps(["tests/test_calc.py::test_least"]),
    }
    if older:
        return made
    lines = ["#!/bin/bash", "set -uxo pipefail", "source /opt/miniconda3/bin/activate", "conda activate testbed"]
    lines += ["cd /testbed", "git apply -v - <<'EOF_TESTS'", test_patch.rstrip("\n"), "EOF_TESTS"]
    lines += [f": '{START_MARKER}'", "pytest -rA", f": '{END_MARKER}'", "git checkout -q -- tests", ""]
    return {
        **made,
        "image": image_name(instance_id, namespace=""),
        "eval_script": "\n".join(lines),
        "log_parser": "parse_log_pytest",
        "eval_type": "pass_and_fail",
    }


def build(instance_id: str, operator: str, folder: Path) -> str:
    """The image of the instance on this machine, under its official name. Blocking."""
    folder.mkdir(parents=True)
    (folder / "activate").write_text(ACTIVATE)
    (folder / "pytest").write_text(PYTEST)
    (folder / "calc.py").write_text(CODE)
    (folder / "test_calc.py").write_text(TESTS)
    return build_image(image_name(instance_id, namespace=""), folder, dockerfile_text=DOCKERFILE.replace("@", operator))


def remove(instance_ids: list[str]) -> None:
    """Their images, and those that the environments were put on."""
    with docker_client(60.0) as api:
        tags = [tag for image in api.images() for tag in image.get("RepoTags") or ()]
        for tag in sorted(tags):  # those of the environments come first: they stand on the others
            if any(name in tag for name in instance_ids) and tag.startswith(("rock-env-swebench", "sweb.eval.")):
                api.remove_image(tag, force=True)
