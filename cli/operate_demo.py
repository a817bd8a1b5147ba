"""`make operate-demo`: a pipeline with people, from search to the served model, twice, and every claim is checked.

Runs the `fednc` command as an operator would: search, gate, register, serve; then new data at one client, an
alarm, a new run, a challenger, approval, a swap without a lost request. Killed at any moment, it continues when it
is started again. Exit code 1 if a fact does not hold.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from importlib import resources
from pathlib import Path
from typing import Any

from fednc.bench.chromium import chromium, draw, login_link
from fednc.cli.output import say
from fednc.common.errors import FedncError, MissingExtraError, RefusedError
from fednc.common.files import private_folder, write_atomically
from fednc.common.security.authority import Authority
from fednc.common.security.credentials import Holder, Role
from fednc.ops.approvals.box import ApprovalBox, PendingRequest
from fednc.ops.pipelines.child_process import die_with_parent
from fednc.ops.pipelines.journal import Journal, PipelineRun
from fednc.ops.registry.lineage import lineage_of
from fednc.ops.registry.registry import ModelRegistry

FOLDER = Path("runs") / "operate-demo"
CLIENTS, SHIFTED = ("north", "east", "south", "west"), "west"
PERSON = "mara"
_TESTED, _START_S, _PATIENCE_S = 360, 180.0, 180.0
_LIFETIME = timedelta(days=2)  # of certificates
_STATE = "demo.json"


class FactError(FedncError):
    """Something that the demo claims does not hold."""


@dataclass
class Demo:
    """The demo in its folder; `done` is what an earlier start has finished."""

    folder: Path
    done: dict[str, float] = field(default_factory=dict)
    facts: int = 0

    @classmethod
    def begun(cls, folder: Path) -> Demo:
        """Continue in `folder`; a finished demo begins anew."""
        path = folder / _STATE
        done = json.loads(path.read_bytes()) if path.exists() else {}
        if "end" in done:
            shutil.rmtree(folder)
            done = {}
        private_folder(folder)
        if done:
            say(f"continuing in {folder}, after: {', '.join(done)}")
        return cls(folder.resolve(), done)

    def part(self, name: str, work: Callable[[], None]) -> None:
        """Do a part of the demo, unless an earlier start has."""
        if name in self.done:
            return
        began = time.monotonic()
        work()
        self.done[name] = round(time.monotonic() - began, 1)
        write_atomically(self.folder / _STATE, json.dumps(self.done).encode())

    def fact(self, holds: object, what: str) -> None:
        """Print a fact. Raises FactError: it does not hold."""
        if not holds:
            raise FactError(f"this does not hold: {what}")
        self.facts += 1
        say(f"  [ok] {what}", style="green")

    # ---- what is on the disk -----------------------------------------------------------------------------------

    @property
    def path(self) -> Path:
        """The pipeline file."""
        return self.folder / "pipeline.toml"

    @property
    def registry(self) -> ModelRegistry:
        """The registry of models, read anew."""
        return ModelRegistry(str(self.folder / "models"))

    @property
    def box(self) -> ApprovalBox:
        """Where the gate asks."""
        return ApprovalBox(self.folder / "approvals")

    @property
    def run(self) -> PipelineRun | None:
        """The last run of the pipeline."""
        return Journal(self.folder / "pipelines" / "digits").latest()

    def aliases(self) -> dict[str, int]:
        """The version of each alias."""
        return self.registry.aliases("digits") if self.registry.rows("digits") else {}

    # ---- commands ----------------------------------------------------------------------------------------------

    def fednc(self, *words: str, may_fail: bool = False) -> subprocess.CompletedProcess[str]:
        """Run `fednc` and show its command line. Raises FactError: it fails."""
        say(f"$ fednc {' '.join(word.replace(str(self.folder), '.') for word in words)}", style="bold")
        done = subprocess.run(_command(*words), capture_output=True, text=True, check=False, cwd=self.folder)
        if done.returncode and not may_fail:
            raise FactError(f"fednc {words[0]} ended with code {done.returncode}:\n{done.stderr[-2000:]}")
        return done

    def approve(self, waiting: PendingRequest) -> None:
        """The person looks at the facts, and approves what was seen."""
        seen = waiting.request
        say(
            f"{PERSON} looks at {seen.digest[:16]}: {seen.facts['metric']} {seen.facts['value']:.3f}, "
            f"{seen.facts['why']}"
        )
        self.fednc(
            "approve",
            seen.digest,
            "--folder",
            "approvals",
            "--certs",
            f"pki/operators/{PERSON}",
            "--reason",
            "seen",
        )


def _command(*words: str) -> list[str]:
    return die_with_parent([sys.executable, "-m", "fednc.cli.start", *words])


# ---- the parts --------------------------------------------------------------------------------------------------


def prepare(demo: Demo) -> None:
    """Data of four clients, certificates, the pipeline file."""
    import numpy as np
    from sklearn.datasets import load_digits

    digits, names = load_digits(), np.array(list("0123456789"))
    image_NHW, label_N = (digits.images * 15.9).astype(np.uint8), digits.target
    order_N = np.random.default_rng(0).permutation(len(label_N))
    parts = {"test": order_N[:_TESTED], **dict(zip(CLIENTS, np.array_split(order_N[_TESTED:], 4), strict=True))}
    private_folder(demo.folder / "data")
    for name, part_N in parts.items():
        np.savez(
            demo.folder / "data" / f"{name}.npz", x_train=image_NHW[part_N], y_train=label_N[part_N], classes=names
        )
    shutil.rmtree(demo.folder / "pki", ignore_errors=True)  # of a start that was killed while it made it
    authority = Authority.create(demo.folder / "pki", "operate-demo")
    authority.issue_server(["127.0.0.1"], _LIFETIME)
    authority.issue_certificate(Holder(Role.OPERATOR, PERSON), _LIFETIME)


def write_pipeline(demo: Demo, url: str) -> None:
    """The pipeline file; `url` of the server that follows the alias."""
    text = resources.files("fednc.cli").joinpath("operate_demo.toml").read_text()
    text = text.replace("FOLDER", str(demo.folder)).replace('url = "URL"', f'url = "{url}"' if url else "")
    write_atomically(demo.path, text.encode())


def first_run(demo: Demo) -> None:
    """From the search to the gate."""
    write_pipeline(demo, "")
    demo.fednc("pipeline", "run", str(demo.path), "--no-wait", may_fail=True)
    run = demo.run
    assert run is not None
    note = run.step("search").note
    demo.fact("is best" in note, f"the search has chosen settings: {note}")
    demo.fact(run.asks, "the pipeline has stopped at the gate")
    demo.fact(
        demo.aliases() == {"challenger": 1}, "version 1 is registered as challenger, and nothing is champion"
    )


def first_verdict(demo: Demo) -> None:
    """A wrong digest, then the right one."""
    waiting = demo.box.pending()
    if waiting:
        other = waiting[0].request.digest[::-1]
        refused = demo.fednc(
            "approve", other, "--folder", "approvals", "--certs", f"pki/operators/{PERSON}", may_fail=True
        )
        demo.fact(
            refused.returncode == RefusedError.exit_code,
            f"approval of another digest is refused: {refused.stderr.strip()[:90]}...",
        )
        unsigned = demo.fednc("approve", waiting[0].request.digest, "--folder", "approvals", may_fail=True)
        demo.fact(unsigned.returncode == RefusedError.exit_code, "an approval without a signature is refused")
        demo.approve(waiting[0])
    if demo.run and not demo.run.ended:
        demo.fednc("pipeline", "run", str(demo.path), "--no-wait")
    found = lineage_of(demo.registry, "digits@champion")
    verdict = found["approvals"][-1]
    demo.fact(demo.aliases()["champion"] == 1, "version 1 is champion")
    demo.fact(
        verdict["valid"] and verdict["who"] == PERSON and verdict["digest"] == found["digest"],
        f"its lineage has {PERSON}'s verdict on {found['digest'][:16]}, signed by {verdict['signed']}",
    )


def new_data(demo: Demo) -> None:
    """The images of one client look different from now on, as with another camera."""
    import numpy as np

    path = demo.folder / "data" / f"{SHIFTED}.npz"
    with np.load(path) as old:
        values = {key: old[key] for key in old.files}
    values["x_train"] = 255 - values["x_train"]
    with tempfile.TemporaryDirectory(dir=demo.folder) as temporary:
        np.savez(Path(temporary) / "new.npz", **values)
        (Path(temporary) / "new.npz").replace(path)


def quiet(demo: Demo) -> None:
    """As long as nothing has changed, nothing happens."""
    demo.fednc("pipeline", "watch", str(demo.path), "--once")
    demo.fact(demo.run and demo.run.number == 1, "a look at the clients raises no alarm, and no run begins")


def alarm(demo: Demo) -> None:
    """The next look hears of it; a new run begins, and waits at the gate."""
    demo.fednc("pipeline", "watch", str(demo.path), "--once")
    run = demo.run
    assert run is not None
    demo.fact(run.number == 2 and run.causes[0].kind == "alarm", f"a new run has begun because {run.why[:110]}")
    demo.fact(run.why.startswith(SHIFTED), f"the alarm names {SHIFTED}")
    trained = {row.run for row in demo.registry.rows("digits")}
    demo.fact(len(trained) == 2, "it has trained anew, because data have changed")
    demo.fact(
        run.asks and demo.aliases() == {"challenger": 2, "champion": 1}, "version 2 is challenger, 1 is served"
    )


def swap(demo: Demo, callers: Callers) -> None:
    """The person approves, the watcher goes on, the server swaps; somebody asks all the time."""
    asked = callers.answers
    for waiting in demo.box.pending():
        demo.approve(waiting)
    if demo.run and not demo.run.ended:
        demo.fednc("pipeline", "watch", str(demo.path), "--once")
    run = demo.run
    assert run is not None
    demo.fact(demo.aliases()["champion"] == 2, f"version 2 is champion: {run.step('deploy').note}")
    callers.wait_for("2")
    demo.fact(callers.answers > asked, f"the server has answered {callers.answers} requests")
    demo.fact(not callers.lost, f"no request was lost {callers.lost[:1] or ''}".rstrip())
    demo.fact(
        callers.is_monotonic, f"no answer came from version 1 after the first from version 2 ({callers.told})"
    )
    demo.fact(
        callers.digests["2"] == demo.registry.resolve("digits/2").digest,
        "answers name the digest that was approved",
    )


def pictures(demo: Demo) -> None:
    """The pipeline's graph, and the console by Chromium."""
    demo.fednc("pipeline", "show", str(demo.path), "--picture", "pipeline.svg")
    demo.fact(
        (demo.folder / "pipeline.svg").stat().st_size > 1000,
        f"picture of the pipeline: {demo.folder}/pipeline.svg",
    )
    if not chromium():
        say("  no Chromium on this machine: the console is not drawn", style="yellow")
        return
    for name in _drawn(demo):
        demo.fact((demo.folder / name).stat().st_size > 5000, f"picture of the console: {demo.folder / name}")


def _drawn(demo: Demo) -> list[str]:
    """Screenshots of the console's pages."""
    place = demo.folder / "console.json"
    place.unlink(missing_ok=True)
    words = [
        "console",
        "--listen",
        "127.0.0.1:0",
        "--json",
        str(place),
        "--store",
        "models",
        "--approvals",
        "approvals",
    ]
    words += ["--pipelines", "pipelines", "--runs", "pipelines/digits/federated"]
    with _process(demo, "console", *words) as process:
        _until(lambda: place.exists() and place.read_text().strip().endswith("}"), process, "the console")
        told = json.loads(place.read_text())
        made = []
        for page in ("runs", "gates", "models", "pipelines"):
            made.append(f"console-{page}.png")
            draw(login_link(told["address"], told["key"], f"/{page}"), demo.folder / made[-1], height=900)
    return made


# ---- the served model and those who ask it ----------------------------------------------------------------------


@contextmanager
def served(demo: Demo) -> Iterator[str]:
    """`fednc serve` on the champion; its HTTP address."""
    place = demo.folder / "serve.json"
    place.unlink(missing_ok=True)
    words = ["serve", "digits@champion", "--store", "models", "--listen", "127.0.0.1:0", "--grpc", "off"]
    with _process(demo, "serve", *words) as process:
        log = demo.folder / "serve.log"

        def address() -> str:
            lines = log.read_text().splitlines() if log.exists() else []
            told = [
                line.partition("listening: http ")[2].split(",")[0] for line in lines if "listening: http" in line
            ]
            return told[-1].strip() if told else ""

        yield str(_until(address, process, "fednc serve"))


@contextmanager
def _process(demo: Demo, name: str, *words: str) -> Iterator[subprocess.Popen[bytes]]:
    say(f"$ fednc {' '.join(words)}", style="bold")
    with (demo.folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(_command(*words), stdout=log, stderr=log, cwd=demo.folder, env=os.environ)
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(condition: Callable[[], Any], process: subprocess.Popen[bytes], what: str) -> Any:
    """The first truthy value. Raises FactError."""
    last = time.monotonic() + _START_S
    while not (found := condition()):
        if process.poll() is not None or time.monotonic() > last:
            raise FactError(f"{what} did not start; see its .log in the demo's folder")
        time.sleep(0.1)
    return found


class Callers:
    """Asks the served model with Triton's client, one request after the other, until the block ends."""

    def __init__(self, demo: Demo, address: str) -> None:
        import numpy as np

        with np.load(demo.folder / "data" / "test.npz") as test:
            self._image_NHWC, self._label_N = test["x_train"][..., None], test["y_train"]
        self._address = address
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._ask_all, daemon=True)
        self.versions: list[str] = []
        self.digests: dict[str, str] = {}
        self.lost: list[str] = []
        self.right = 0

    def __enter__(self) -> Callers:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(_PATIENCE_S)

    @property
    def answers(self) -> int:
        """How many requests were answered."""
        return len(self.versions)

    @property
    def is_monotonic(self) -> bool:
        """Whether no earlier version answered after a later one."""
        return self.versions == sorted(self.versions)

    @property
    def told(self) -> str:
        """Answers by version."""
        return ", ".join(f"version {name}: {self.versions.count(name)}" for name in sorted(set(self.versions)))

    def wait_for(self, version: str = "") -> None:
        """Until somebody has had an answer, from a version if one is given."""
        last = time.monotonic() + _PATIENCE_S
        while not (version in self.versions if version else self.answers > 20) and time.monotonic() < last:
            time.sleep(0.05)

    def _ask_all(self) -> None:
        import tritonclient.http as triton

        client = triton.InferenceServerClient(self._address)
        number = 0
        while not self._stopping.is_set():
            try:
                self._ask(triton, client, number % len(self._label_N))
            except Exception as e:  # whatever the client raises is a request that was lost
                self.lost.append(f"{type(e).__name__}: {e}")
            number += 1
            time.sleep(0.05)

    def _ask(self, triton: Any, client: Any, place: int) -> None:
        pixel_1HWC = self._image_NHWC[place : place + 1]
        given = triton.InferInput("pixels", list(pixel_1HWC.shape), "UINT8")
        given.set_data_from_numpy(pixel_1HWC)
        answer = client.infer("digits", [given])
        said = answer.get_response()
        self.versions.append(str(said["model_version"]))
        self.digests[self.versions[-1]] = str(said["parameters"]["model_digest"])
        self.right += answer.as_numpy("label").flatten()[0].decode() == str(self._label_N[place])


def operate(folder: Path) -> None:
    """All parts, in order. Raises FactError."""
    began = time.monotonic()
    demo = Demo.begun(folder)
    demo.part("prepare", lambda: prepare(demo))
    demo.part("search, train, gate", lambda: first_run(demo))
    demo.part("approve, deploy", lambda: first_verdict(demo))
    if "swap" not in demo.done:
        with served(demo) as address, Callers(demo, address) as callers:
            write_pipeline(demo, f"http://{address}")
            callers.wait_for()
            demo.fact(
                callers.right > 0.6 * callers.answers > 0,
                f"tritonclient asks: {callers.right} of {callers.answers} right",
            )
            demo.part("quiet", lambda: quiet(demo))
            demo.part("new data", lambda: new_data(demo))
            demo.part("alarm, new run", lambda: alarm(demo))
            demo.part("swap", lambda: swap(demo, callers))
    demo.part("pictures", lambda: pictures(demo))
    found = lineage_of(demo.registry, "digits@champion")
    demo.fact(len(found["moves"]["champion"]) == 2, "the lineage shows both moves of champion")
    demo.part("end", lambda: None)
    say(f"{demo.facts} facts hold; {time.monotonic() - began:.0f} s; everything is in {demo.folder}")


def main() -> int:
    """The exit code."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    try:
        if not _has("tritonclient"):
            raise MissingExtraError("tritonclient", "ops-test", "the demo of operation")
        operate(folder)
    except FedncError as e:
        say(f"error: {e}", style="bold red")
        say(f"run it again to continue, or delete {folder} to begin anew")
        return e.exit_code
    return 0


def _has(package: str) -> bool:
    from importlib.util import find_spec

    return find_spec(package) is not None


if __name__ == "__main__":
    sys.exit(main())
