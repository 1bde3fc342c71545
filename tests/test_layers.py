"""The house keeps its rooms apart: who may import whom, and what the command line loads before it is asked to work."""

import ast
import json
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sarm_ray"

# room -> rooms of ours it may import, besides itself. `config` imports nothing of ours but errors.
ALLOWED = {
    "errors": set(),
    "client": set(),
    "config": {"errors"},
    "console": {"errors"},
    "core": set(),
    "data": {"core", "errors"},
    "model": {"core", "errors"},
    "report": {"core", "data", "config", "console", "errors"},
    "pipelines": {"core", "data", "model", "report", "config", "console", "errors", "sarm_ray"},
    "bench": {"core", "data", "model", "pipelines", "config", "console", "errors", "sarm_ray", "client"},
    "demo": {"core", "data", "config", "console", "errors"},
    "sample_weighting": {"core", "data", "errors"},
    "cli": {"demo", "data", "pipelines", "report", "bench", "config", "console", "errors", "core", "sarm_ray"},
    "__main__": {"cli"},
    "__init__": set(),
}
# libraries that only some rooms may import, at any level
ONLY_IN = {
    "ray": {"pipelines"},
    "transformers": {"model", "bench"},
    "torch": {"model", "pipelines", "bench", "data", "sample_weighting"},
    "matplotlib": {"report"},
    "websockets": {"client", "bench"},
}
PURE = {"numpy"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else path.stem


def imports_of(path: Path, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else ast.walk(tree)
    names = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_one_way(path):
    room = room_of(path)
    for name in imports_of(path):
        top, *rest = name.split(".")
        if top == "sarm_ray":
            target = rest[0] if (PACKAGE / rest[0]).exists() or (PACKAGE / f"{rest[0]}.py").exists() else "sarm_ray"
            assert target == room or target in ALLOWED[room], f"{path} imports {name}"
        if top in ONLY_IN:
            assert room in ONLY_IN[top], f"{path} imports {name}"
        if room == "core":
            allowed = PURE | ({"scipy"} if path.name == "resampling.py" else set())
            assert top in sys.stdlib_module_names | allowed | {"sarm_ray"}, f"{path} imports {name}"


def test_data_imports_torch_only_where_a_frame_is_resized():
    users = [path.name for path in modules() if room_of(path) == "data" and "torch" in imports_of(path)]
    assert users == ["resizing.py"]
    assert "torch" not in imports_of(PACKAGE / "data/resizing.py", top_level_only=True)


def test_the_client_can_be_copied_to_a_robot(tmp_path):
    client = PACKAGE / "client.py"
    tops = {name.partition(".")[0] for name in imports_of(client)}
    assert tops <= sys.stdlib_module_names | {"numpy", "websockets"}
    shutil.copy(client, tmp_path / "live.py")
    heavy = ("ray", "torch", "pandas", "pyarrow", "sarm_ray")
    for folder, name, allowed in ((tmp_path, "live", set()), (ROOT, "sarm_ray.client", {"sarm_ray"})):
        code = f"import sys, {name}; print(*[m for m in {heavy!r} if m in sys.modules])"
        result = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
        assert set(result.stdout.split()) == allowed


def test_no_module_is_a_junk_drawer():
    assert not [p.name for p in modules() if p.stem in ("utils", "helpers", "common", "misc", "base", "manager")]


def test_help_is_quick_and_loads_neither_ray_nor_torch():
    code = (
        "import sys, json; from click.testing import CliRunner; from sarm_ray.cli import main;"
        "result = CliRunner().invoke(main, ['score', '--help']);"
        "heavy = ('ray', 'torch', 'numpy', 'pyarrow', 'matplotlib');"
        "print(json.dumps([result.exit_code, [m for m in heavy if m in sys.modules]]))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [0, []]
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        subprocess.run([sys.executable, "-m", "sarm_ray", "--help"], capture_output=True, check=True)
        seconds.append(time.perf_counter() - started)
    assert statistics.median(seconds) < 0.5


def test_importing_does_nothing():
    """No module starts Ray, writes the environment or connects while it is imported."""
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in modules() if path.stem != "__main__"]
    code = (
        "import os, socket, importlib\n"
        "import ray, ray.data, torch\n"  # ray sets RAY_CLIENT_MODE by itself
        "before = dict(os.environ)\n"
        "def refuse(*a): raise AssertionError('connected while importing')\n"
        "socket.socket.connect = refuse\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "import ray; assert not ray.is_initialized()\n"
        "changed = {k for k in os.environ if os.environ.get(k) != before.get(k)}\n"
        "assert not {k for k in changed if 'SARM' in k or k.startswith(('RAY_', 'HF_'))}, changed\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
