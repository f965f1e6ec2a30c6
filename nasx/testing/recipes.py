"""What every recipe's command line promises."""

import contextlib
import io
import json
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import SkipTest

from nasx.arch import Arch


class RecipeContract(ABC):
    """What every recipe's command line promises: JSON and nothing else on request, status 2 for bad input, whole runs.

    `arguments` is what `plan` needs beside `--json`, `short` what makes a `run` end within seconds, `described` an
    architecture that `describe --arch` knows, `bad` further command lines that must be refused.
    """

    arguments: Sequence[str] = ()
    short: Sequence[str] = ()
    described: str = ""
    bad: Sequence[Sequence[str]] = ()

    @abstractmethod
    def main(self, arguments: Sequence[str]) -> int:
        """Run the command line and return its exit status."""

    def test_help(self) -> None:
        """`--help` says how to use it, with status 0."""
        status, out, _ = self._run("--help")
        assert status == 0
        assert "plan" in out

    def test_plan(self) -> None:
        """`plan --json` prints sizes and attainable costs, and trains nothing."""
        plan = self._json("plan", *self.arguments)
        assert 1 <= plan["feasible_size"] <= plan["size"]
        assert 0 < plan["cost_min"] <= plan["cost_max"]

    def test_describe(self) -> None:
        """`describe --json` prints what a network costs and its blocks."""
        if not self.described:
            raise SkipTest("`described` names no architecture")
        network = self._json("describe", "--arch", self.described)
        assert network["params"] > 0
        assert network["macs"] > 0
        assert network["blocks"]

    def test_run(self) -> None:
        """A run leaves a network with its accuracies and a report; the same command again only tells of it."""
        if not self.short:
            raise SkipTest("`short` gives no run that ends within seconds")
        with tempfile.TemporaryDirectory() as folder:
            run = Path(folder) / "run"
            command = ["run", *self.short, "--run-dir", str(run)]
            summary = self._json(*command)
            networks = summary["networks"]
            assert len(networks) > 1, f"a summary compares with other networks, but has {list(networks)} alone"
            for name, network in networks.items():
                for part in ("val_accuracy", "test_accuracy"):
                    assert 0 <= network[part] <= 1, f"{part} of {name} is a share, but was {network[part]}"
                assert network["params"] > 0, name
                assert network["macs"] > 0, name
            assert json.loads((run / "summary.json").read_text()) == summary
            found = Arch.from_json((run / "arch.json").read_text())
            assert dict(found) == networks[next(iter(networks))]["arch"], "the network that was found comes first"
            assert (run / "report.html").stat().st_size
            weights = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
            assert run / "model.safetensors" in weights
            assert self._json(*command) == summary
            again = {path: path.stat().st_mtime_ns for path in run.rglob("*.safetensors")}
            assert again == weights, "a finished run was trained again"
            status, out, errors = self._run(*command, "--set", f"seed={summary['seed'] + 1}", "--json")
            assert (status, out) == (2, ""), "a finished run does not go on with another configuration"
            assert "seed" in errors

    def test_bad_input_is_refused_with_status_2(self) -> None:
        """A message on standard error, no traceback, nothing on standard output."""
        plan = ["plan", *self.arguments, "--json"]
        lines = [["no-such-command"], [*plan, "--no-such-option"], [*plan, "--set", "no.such.field=1"], *self.bad]
        if self.described:
            lines.append(["describe", "--json", "--arch", "no-such-architecture"])
        for line in lines:
            status, out, errors = self._run(*line)
            assert status == 2, f"{' '.join(line)!r} ended with status {status} instead of 2"
            assert errors.strip(), f"{' '.join(line)!r} was refused without a word"
            assert "Traceback" not in errors
            assert not out, f"{' '.join(line)!r} was refused, but wrote to standard output: {out[:80]!r}"

    def _json(self, *arguments: str) -> dict[str, Any]:
        status, out, errors = self._run(*arguments, "--json")
        assert status == 0, f"{' '.join(arguments)!r} ended with status {status}: {errors[-400:]}"
        try:
            document = json.loads(out)
        except json.JSONDecodeError:
            raise AssertionError(f"with --json standard output is one JSON document, but got {out[:200]!r}") from None
        assert isinstance(document, dict)
        return document

    def _run(self, *arguments: str) -> tuple[int, str, str]:
        out, errors = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(errors):
            try:
                status = self.main(arguments)
            except SystemExit as ended:
                status = ended.code if isinstance(ended.code, int) else int(ended.code is not None)  # as Python does
        return status, out.getvalue(), errors.getvalue()
