"""The options become one `Suite`, and what cannot be is a usage error that says what to do."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from hpsbench import options, plugin
from hpsbench.machine import Gpu
from hpsbench.options import BenchOptions

pytest_plugins = ["pytester"]

GPU = Gpu(name="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30, driver="580.1")


@pytest.fixture
def resolve(project: pytest.Pytester) -> Callable[..., BenchOptions]:
    """Return a function that gives the options of a command line."""
    return lambda *arguments: project.parseconfigure(*arguments).stash[plugin.OPTIONS_KEY]


def test_options_change_the_preset(resolve: Callable[..., BenchOptions]) -> None:
    found = resolve(
        "--preset=smoke",
        "--set=load.launches=9",
        "--set=gate.noise_threshold=0.05",
        "--triton=http://localhost:8000",
        "--hps-module=hierarchical_parameter_server",
        "--variants=hps_tf, native_tf",
    )
    suite = found.suite
    assert suite.preset == "smoke"
    assert suite.load.launches == 9
    assert suite.gate.noise_threshold == 0.05
    assert suite.servers.triton == "http://localhost:8000"
    assert suite.hps.module == "hierarchical_parameter_server"
    assert found.variants == ("hps_tf", "native_tf")


def test_the_default_preset_is_for_the_machine(
    resolve: Callable[..., BenchOptions], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(options, "find_gpus", lambda: ())
    assert resolve().suite.preset == "laptop"
    assert resolve().variants is None
    monkeypatch.setattr(options, "find_gpus", lambda: (GPU,))
    assert resolve().suite.preset == "criteo"


@pytest.mark.parametrize(
    ("ci", "arguments", "strict"),
    [
        ("", [], False),
        ("true", [], True),
        ("true", ["--no-strict-gate"], False),
        ("", ["--strict-gate"], True),
        ("", ["--set=gate.strict=true"], True),
        ("", ["--set=gate.strict=true", "--no-strict-gate"], False),
    ],
)
def test_the_gate_is_strict_where_asked_or_under_ci(
    resolve: Callable[..., BenchOptions],
    monkeypatch: pytest.MonkeyPatch,
    ci: str,
    arguments: list[str],
    strict: bool,
) -> None:
    monkeypatch.setenv("CI", ci)
    assert resolve(*arguments).suite.gate.strict is strict


@pytest.mark.parametrize(
    ("argument", "lines"),
    [
        pytest.param(
            "--preset=labtop",
            ["ERROR: unknown preset 'labtop'", "*did you mean laptop?*"],
            id="preset",
        ),
        pytest.param(
            "--set=load.lunches=1",
            ["ERROR: *unknown field load.lunches", "*did you mean load.launches?*"],
            id="field",
        ),
        pytest.param("--set=launches", ["ERROR: --set 'launches' is not *"], id="shape"),
        pytest.param(
            "--triton=nvidia", ["ERROR: servers.triton is 'nvidia', and must be *"], id="triton"
        ),
        pytest.param("--preset=", ["ERROR: unknown preset ''"], id="preset empty"),
        pytest.param(
            "--set=load.measure_s=inf",
            ["ERROR: load.measure_s is inf", "*hint: write a finite number"],
            id="endless",
        ),
        pytest.param("--set=load.measure_s=nan", ["ERROR: load.measure_s is nan"], id="nan"),
        pytest.param(
            f"--set=load.measure_s=1{'0' * 400}", ["ERROR: load.measure_s is inf"], id="too large"
        ),
        pytest.param("--set=load.launches=-1", ["ERROR: load.launches is -1, *"], id="negative"),
        pytest.param("--triton=http://", ["ERROR: http:// is no address of *"], id="no host"),
        pytest.param("--triton=ftp://x", ["ERROR: ftp://x is no address of *"], id="no http"),
        pytest.param(
            "--triton=http://x:port", ["ERROR: http://x:port is no address of *"], id="no port"
        ),
        pytest.param("--hps-module=", ["ERROR: hps.module is '', and must be *"], id="no module"),
        pytest.param(
            "--hps-module=a b", ["ERROR: hps.module is 'a b', and must be *"], id="module's name"
        ),
        pytest.param(
            "--hps-module=absent.part",
            ["ERROR: hps.module is absent.part, and Python finds no such module"],
            id="absent module",
        ),
        pytest.param("--baselines=", ["ERROR: --baselines '' names no folder"], id="baselines"),
        pytest.param(
            "--baselines=script.json",
            ["ERROR: cannot read baselines in *script.json*: Not a directory"],
            id="baselines that are a file",
        ),
        pytest.param("--variants=,", ["ERROR: --variants ',' names no variant"], id="variants"),
        pytest.param(
            "--variants=fused",
            [
                "ERROR: variant 'fused' serves the many-table model, and preset * describes DLRM",
                "*hint: pass --preset fusion-100 or fusion-8, or a variant of DLRM, such as *",
            ],
            id="variants of another model",
        ),
    ],
)
def test_what_cannot_be_is_a_usage_error(
    session: Callable[..., pytest.RunResult], argument: str, lines: list[str]
) -> None:
    result = session(argument)
    assert result.ret == 4
    result.stdout.no_fnmatch_line("*passed*")
    result.stderr.fnmatch_lines(lines)
    result.stderr.no_fnmatch_line("*Traceback*")


def test_every_option_has_its_help(session: Callable[..., pytest.RunResult]) -> None:
    result = session("--help")
    result.stdout.fnmatch_lines(
        [
            "DLRM inference benchmarks:",
            "  --preset=NAME*",
            "  --set=SECTION.FIELD=VALUE*",
            "  --variants=NAMES*",
            "  --triton=WHICH*",
            "  --hps-module=MODULE*",
            "  --baselines=DIR*",
            "  --resume*",
            "  --strict-gate*",
            "  --no-strict-gate*",
        ]
    )


def test_tests_that_need_a_gpu_are_deselected_visibly_where_there_is_none(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = project.makepyfile(
        """
        import pytest

        @pytest.mark.gpu
        @pytest.mark.parametrize("n", range(3))
        def test_on_gpu(n): pass

        @pytest.mark.server
        def test_anywhere(): pass
        """
    )
    result = project.runpytest_inprocess("--strict-markers", path)
    result.assert_outcomes(passed=1, deselected=3)
    result.stdout.fnmatch_lines(["hpsbench: 3 tests marked gpu were deselected: no GPU here"])

    monkeypatch.setattr(plugin, "find_gpus", lambda: (GPU,))
    project.runpytest_inprocess("--strict-markers", path).assert_outcomes(passed=4)


def test_progress_reaches_the_terminal_past_captured_output(project: pytest.Pytester) -> None:
    path = project.makepyfile(
        """
        from hpsbench.session import Progress

        def test_it(progress):
            print("swallowed")
            progress(Progress(launch=2, launches=4, batch_size=64, elapsed_s=1.0, eta_s=30.0))
        """
    )
    result = project.runpytest_subprocess(path)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["launch 2/4, batch 64, about 30 s left"])
    result.stdout.no_fnmatch_line("*swallowed*")
