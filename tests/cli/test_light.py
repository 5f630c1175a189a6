"""What must be quick and light: help, version, doctor, and wrong usage."""

from __future__ import annotations

import json
import os
import subprocess
import sys

from tests.cli.process import Run, error_line

COMMANDS = ("deploy", "export", "optimize", "inspect", "validate", "convert-weights", "build-engine", "doctor")
HEAVY = {"torch", "onnx", "onnxruntime", "onnxscript", "onnx_graphsurgeon", "numpy", "rich", "sklearn"}


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys, json\nfrom aff_deploy.cli import app\n"
        "seen = {}\n"
        f"for words in {[[], *([name] for name in COMMANDS)]!r}:\n"
        "    app([*words, '--help'], standalone_mode=False, prog_name='aff-deploy')\n"
        "print('MODULES', json.dumps(sorted({m.partition('.')[0] for m in sys.modules})))\n"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    text, _, modules = ran.stdout.partition("MODULES ")
    assert HEAVY & set(json.loads(modules)) == set()
    for name in COMMANDS:
        assert f"Usage: aff-deploy {name}" in text
    for option in ("--dynamic", "--exporter", "--no-fuse", "--verify", "--min-cosine", "--against", "--weights", "--json"):
        assert option in text


def test_version_and_no_words(run: Run) -> None:
    assert run("--version").stdout.startswith("aff-deploy 0.")
    assert "Usage:" in run().stdout


def test_wrong_usage_is_exit_2(run: Run) -> None:
    assert "No such command 'frobnicate'" in error_line(run("frobnicate"), 2)
    assert "Missing argument" in error_line(run("inspect"), 2)
    assert "Missing option '-o'" in error_line(run("optimize", "a.onnx"), 2)
    assert "NAME:1x3x224x224" in error_line(run("export", "aff_resnet50", "-o", "x.onnx", "--input", "image"), 2)
    assert "is the input itself" in error_line(run("optimize", "x.onnx", "-o", "./x.onnx"), 2)
    assert "--exporter" in error_line(run("export", "a", "-o", "x.onnx", "--exporter", "tf"), 2)


def test_doctor(run: Run) -> None:
    ran = run("doctor", "--json")
    assert ran.returncode == 0
    assert ran.stderr == ""
    found = json.loads(ran.stdout)
    versions = {package["name"]: package["version"] for package in found["packages"]}
    assert versions["onnx"]
    assert versions["torch"]
    assert found["commands"]["optimize, inspect"] is True
    assert "pip install 'aff-deploy[cpu]'" not in found["missing"]
    assert found["commands"]["validate, deploy"] is True
    assert "CPUExecutionProvider" in found["providers"]
    assert "onnx-graphsurgeon" in run("doctor").stdout


def test_the_shell_completes_commands_options_and_recipes() -> None:
    def completed(words: str, place: int) -> list[str]:
        code = "import sys\nfrom aff_deploy.cli import main\ntry:\n    main([])\nfinally:\n    print('MODULES', *sys.modules)"
        environment = {**os.environ, "_AFF_DEPLOY_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(place)}
        ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
        text, _, modules = ran.stdout.partition("MODULES ")
        assert HEAVY & set(modules.split()) == set()
        return text.split()

    assert completed("aff-deploy vali", 1) == ["validate"]
    assert completed("aff-deploy deploy aff_resnet_d", 2) == ["aff_resnet_digits"]
    assert completed("aff-deploy build-engine --keep-f", 2) == ["--keep-fp32"]


def test_no_words_list_the_recipes(run: Run) -> None:
    assert "iaff_resnet_digits" in run().stdout
    assert "iaff_resnet_digits" in error_line(run("deploy"), 2)
    assert "GPUs" in run("doctor").stdout
