"""The Hub: revisions, a machine without a network, pushing; each in a process that knows a Hub on this machine alone."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from sarm_ray.data import hub
from sarm_ray.data.lerobot import open_dataset
from sarm_ray.errors import ConfigError, DatasetError
from tests.datasets import CAMERA, write_dataset
from tests.hub import hub_environment, serve_hub
from tests.s3 import BUCKET, s3_environment, serve_s3

TOY = "someone/toy"


def run(code: str, environment: dict[str, str]) -> dict:
    """What a process says: `said`, set by the code, or the line of the error."""
    script = (
        "import json, sys\nimport numpy as np\n"
        "from sarm_ray.data import hub, storage\nfrom sarm_ray.data.lerobot import fetch_files, open_dataset\n"
        "from sarm_ray.errors import SarmRayError\n"
        f"try:\n    {code}\nexcept SarmRayError as error:\n    said = {{'error': f'{{type(error).__name__}}: {{error}}'}}\n"
        "print(json.dumps(said))"
    )
    environment = {**environment, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    result = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=False
    )
    assert result.returncode == 0, result.stderr
    return {**json.loads(result.stdout.splitlines()[-1]), "stderr": result.stderr}


def about(name: str, revision: str | None = None) -> str:
    return (
        f"dataset = open_dataset({name!r}, {revision!r}); said = {{'lengths': dataset.length.tolist(), 'files': "
        "dataset.files, 'id': dataset.repo_id, 'revision': dataset.revision, 'notices': dataset.notices}"
    )


@pytest.fixture(scope="module")
def toys(tmp_path_factory) -> dict[str, Path]:
    """Two branches of a dataset, and one inside a folder of a repository."""
    root = tmp_path_factory.mktemp("repositories")
    return {
        "main": write_dataset(root / "main", "v2.1", [5, 4]),
        "v2": write_dataset(root / "v2", "v2.1", [3]),
        "many": write_dataset(root / "many/inner", "v2.1", [2]).parent,
    }


def test_names_of_datasets_on_the_hub():
    parse = hub.parse_dataset_uri
    assert parse(f"hf://datasets/{TOY}", None) == (TOY, None)
    assert parse(f"hf://datasets/{TOY}/", "v2") == (TOY, "v2")
    assert parse(f"hf://datasets/{TOY}@v2", None) == parse(f"hf://datasets/{TOY}@v2/", "v2") == (TOY, "v2")
    assert parse(f"hf://datasets/{TOY}@a%2Fb", None) == (TOY, "a/b")
    assert parse(f"hf://datasets/{TOY}@refs/pr/7", None) == (TOY, "refs/pr/7")
    for other in (TOY, f"hf://datasets/{TOY}/inner", "/a/b", "s3://bucket/toy"):
        assert parse(other, "r") == (other, "r")
    with pytest.raises(
        ConfigError, match=r"^hf://datasets/someone/toy@v1 asks for revision v1, --revision for v2; give o"
    ):
        parse(f"hf://datasets/{TOY}@v1", "v2")
    for name in ("hf://toy", f"hf://{TOY}"):
        with pytest.raises(DatasetError, match=rf"^{name}: not a dataset on the Hub; they are called hf://datasets/"):
            open_dataset(name)


def test_revisions_and_folders(toys, tmp_path):
    repositories = {f"datasets/{TOY}": {"main": toys["main"], "v2": toys["v2"]}, "datasets/someone/many": toys["many"]}
    with serve_hub(repositories) as server:
        environment = hub_environment(server.url, tmp_path / "hf")
        plain, uri = run(about(TOY), environment), run(about(f"hf://datasets/{TOY}/"), environment)
        assert plain == uri
        assert plain["lengths"] == [5, 4]
        assert (plain["id"], plain["notices"]) == (TOY, [])
        other = run(about(f"hf://datasets/{TOY}@v2"), environment)
        assert other == run(about(TOY, "v2"), environment)
        assert other["lengths"] == [3]
        assert other["revision"] != plain["revision"]
        assert other == run(about(f"hf://datasets/{TOY}@{other['revision']}"), environment)
        missing = run(about(f"hf://datasets/{TOY}@v3"), environment)
        assert missing["error"].startswith(f"DatasetError: {TOY}: ")
        assert "Revision Not Found" in missing["error"] or "404" in missing["error"]
        inner = run(about("hf://datasets/someone/many/inner"), environment)
        assert (inner["lengths"], inner["id"]) == ([2], None)
        assert len(inner["files"]) == 2
        nothing = run(about("hf://datasets/someone/many/nosuch"), environment)
        assert nothing["error"].startswith("DatasetError: hf://datasets/someone/many/nosuch: not a LeRobot dataset")


def test_without_a_network_the_files_on_this_machine_count(toys, tmp_path):
    """With the same stamps as the Hub's own, so that features stay valid; what was never fetched is absent."""
    fetch = "; fetch_files(dataset, np.array([0])); fetch_files(dataset, np.array([0]), dataset.cameras[0])"
    with serve_hub({f"datasets/{TOY}": toys["main"]}) as server:
        environment = hub_environment(server.url, tmp_path / "hf")
        online = run(about(TOY) + fetch, environment)
        assert "error" not in online
    offline = run(about(TOY) + fetch.replace("array([0])", "array([0, 1])"), {**environment, "HF_HUB_OFFLINE": "1"})
    assert offline["lengths"] == online["lengths"]
    assert offline["revision"] == online["revision"]
    assert offline["notices"] == [
        f"HF_HUB_OFFLINE is set: of {TOY} at {online['revision'][:8]} those files count that are on this machine"
    ]
    first = {path for path in online["files"] if path.startswith(("meta/", ".")) or "episode_000000" in path}
    assert f"videos/chunk-000/{CAMERA}/episode_000000.mp4" in first
    assert offline["files"] == {path: online["files"][path] for path in first}
    gone = run(about("someone/other"), {**environment, "HF_HUB_OFFLINE": "1"})
    assert gone["error"].startswith(
        "DatasetError: someone/other: no such local folder, and the Hub has no such dataset"
    )


def push(files: dict[str, str], repo_id: str = TOY, repo_type: str = "dataset", revision: str | None = None) -> str:
    return f"hub.upload_to_hub({repo_id!r}, {repo_type!r}, {files!r}, 'scored by us', {revision!r})"


def pushes(*attempts: tuple[str, str]) -> str:
    """Code that makes several pushes with a token each, and says what came of them."""
    return (
        "import os; said = {'outcomes': []}\n"
        f"    for token, call in {attempts!r}:\n"
        "        os.environ['HF_TOKEN'] = token\n"
        "        try: said['outcomes'].append(eval(call))\n"
        "        except SarmRayError as error: said['outcomes'].append(f'{type(error).__name__}: {error}')"
    )


def test_push(toys, tmp_path):
    """Files of a disk and of a bucket, in one commit; every refusal is one line without the token."""
    progress = tmp_path / "sarm_progress.parquet"
    progress.write_bytes(b"PAR1 and so on")
    repositories = {f"datasets/{TOY}": {"main": toys["main"], "v2": toys["v2"]}, "someone/model": toys["many"]}
    files = {"sarm_progress.parquet": str(progress), "run/summary.json": f"s3://{BUCKET}/out/summary.json"}
    one = {"a/b.json": str(progress)}
    writer, reader = "hf_secret_writer", "hf_secret_reader"
    with serve_hub(repositories, tokens={writer: True, reader: False}) as server, serve_s3() as s3:
        s3.put("out/summary.json", b"{}")
        environment = s3_environment(s3.endpoint, **hub_environment(server.url, tmp_path / "hf"))
        calls = [
            (writer, push(files)),
            (writer, push(one, revision="v2")),
            (writer, push(one, "someone/model", "model")),
        ]
        done = run(pushes(*calls), environment)
        assert done["outcomes"][0].startswith(f"{server.url}/datasets/{TOY}/commit/")
        contents = {"sarm_progress.parquet": b"PAR1 and so on", "run/summary.json": b"{}"}
        assert server.commits == [
            (f"datasets/{TOY}", "main", "scored by us", contents),
            (f"datasets/{TOY}", "v2", "scored by us", {"a/b.json": b"PAR1 and so on"}),
            ("someone/model", "main", "scored by us", {"a/b.json": b"PAR1 and so on"}),
        ]
        absent = f"s3://{BUCKET}/nosuch"
        refusals = [
            ("", push(one), f"{TOY}: pushing needs a Hugging Face token; run `hf auth login` or set HF_TOKEN"),
            (
                reader,
                push(one),
                f"{TOY}: the token may not write to it; take one with write access; nothing was pushed",
            ),
            (
                "hf_secret_x",
                push(one),
                f"{TOY}: the Hub does not accept the token; run `hf auth login` or set HF_TOKEN; n",
            ),
            (writer, push(one, revision="v3"), f"{TOY}: there is no branch 'v3' to push to; nothing was pushed"),
            (
                writer,
                push(one, "a/new"),
                "a/new: the Hub has no such dataset, or the token may not see it; create it th",
            ),
            (writer, push({"x": absent}), f"{absent}: no such file; nothing was pushed"),
            (writer, push({"x": f"{tmp_path}/nosuch"}), f"{tmp_path}/nosuch: no such file; nothing was pushed"),
        ]
        said = run(pushes(*(refusal[:2] for refusal in refusals)), environment)
        for (_, _, expected), outcome in zip(refusals, said["outcomes"], strict=True):
            assert outcome.startswith(f"DatasetError: {expected}")
            assert "\n" not in outcome
        assert "hf_secret" not in str(said)
        offline = run(pushes((writer, push(one))), {**environment, "HF_HUB_OFFLINE": "1"})["outcomes"][0]
        assert offline.startswith(f"DatasetError: {TOY}: Cannot reach http://127.0.0.1:")
        assert len(server.commits) == 3
