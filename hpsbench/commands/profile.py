"""`hpsbench profile`: where the time of lookups goes, per stage and tier, beside a peer."""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import datetime, timezone
from pathlib import Path

from hpsbench import storage
from hpsbench.commands.parsers import positive, whole
from hpsbench.config import environment
from hpsbench.errors import ConfigError
from hpsbench.gate import EXIT_PASSED
from hpsbench.hps.lookup import ModelTables
from hpsbench.hps.native.tiers import Tier
from hpsbench.machine import free_memory_bytes, this_machine
from hpsbench.profiling.batches import STREAMS, Stream, batches
from hpsbench.profiling.result import Profile, StageResult, TableResult, call_times
from hpsbench.profiling.rounds import Asked, Stage, ask_in_turn
from hpsbench.profiling.stages import (
    PEERS,
    GpuCacheLookup,
    HostLookup,
    NumpyPeer,
    TensorFlowLookup,
    TensorFlowPeer,
    TierLookup,
)
from hpsbench.profiling.subject import Subject, configured, generated
from hpsbench.profiling.tiers import flat_counters, tier_results
from hpsbench.report import files
from hpsbench.report import profile as report
from hpsbench.workspace import workspace

SCHEMA_VERSION = 1
_ROWS, _DIM = 1_000_000, 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    what = parser.add_argument_group("tables")
    what.add_argument(
        "--config",
        metavar="FILE",
        help="the parameter server's JSON file (default: a made-up table)",
    )
    what.add_argument("--model", metavar="NAME", help="a model of it (default: the first)")
    what.add_argument("--table", metavar="NAME", help="one table of the model (default: all)")
    what.add_argument(
        "--rows",
        type=positive,
        metavar="N",
        help=f"without --config: rows of a made-up table with scattered keys (default: {_ROWS})",
    )
    what.add_argument(
        "--dim", type=positive, metavar="D", help=f"values of its rows (default: {_DIM})"
    )
    keys = parser.add_argument_group("keys").add_mutually_exclusive_group()
    keys.add_argument(
        "--stream",
        choices=STREAMS,
        default="zipf",
        help="how keys are drawn; zipf is a power law (default: %(default)s)",
    )
    keys.add_argument(
        "--histogram",
        type=Path,
        metavar="FILE",
        help="keys as often as counted: a key and its count a line, or .npy",
    )
    keys.add_argument(
        "--keys",
        type=Path,
        metavar="FILE",
        help="recorded keys, asked in their order: as text, or .npy",
    )
    drawing = parser.add_argument_group("drawn keys")
    drawing.add_argument(
        "--alpha",
        type=_above_zero,
        default=1.05,
        metavar="A",
        help="of zipf: its exponent (default: %(default)s)",
    )
    drawing.add_argument(
        "--hot-share",
        type=_share,
        default=0.9,
        metavar="SHARE",
        help="of hot: the share of keys that are hot ones (default: %(default)s)",
    )
    drawing.add_argument(
        "--hot-keys",
        type=positive,
        default=100,
        metavar="N",
        help="of hot: how many keys are hot (default: %(default)s)",
    )
    shape = parser.add_argument_group("calls")
    for option, default, text in (
        ("--batch-size", 1024, "samples of a call"),
        ("--hotness", 26, "keys of a sample, of each table"),
        ("--iterations", 300, "calls of each stage, on each thread"),
        ("--threads", 1, "callers at a time"),
    ):
        shape.add_argument(
            option,
            type=positive,
            default=default,
            metavar="N",
            help=f"{text} (default: {default})",
        )
    shape.add_argument(
        "--warm-up",
        type=whole,
        default=50,
        metavar="N",
        help="calls of each stage before, which are not counted (default: %(default)s)",
    )
    shape.add_argument(
        "--seed",
        type=whole,
        default=0,
        metavar="N",
        help="seed of keys and rows (default: %(default)s)",
    )
    shape.add_argument(
        "--peer",
        choices=PEERS,
        default="tensorflow",
        help="what does the same work in turn: tf.nn.embedding_lookup, numpy.take, or nothing; "
        "numpy stands in where TensorFlow is not installed or has no memory for the rows "
        "(default: %(default)s)",
    )
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write all figures there, in nanoseconds"
    )
    parser.set_defaults(command=_command)


def _share(text: str) -> float:
    return _fraction(text, "a share from 0 to 1", lambda value: 0 <= value <= 1)


def _above_zero(text: str) -> float:
    return _fraction(text, "a number above 0", lambda value: 0 < value < float("inf"))


def _fraction(text: str, rule: str, holds: Callable[[float], bool]) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not holds(value):
        raise argparse.ArgumentTypeError(f"{text} is not {rule}")
    return value


def _command(given: argparse.Namespace) -> int:
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    files.require_place(given.json)
    with ExitStack() as stack:
        subject = _subject(given, stack)
        profile = _profile(given, subject)
    print("\n".join(report.lines(profile)))
    if given.json is not None:
        files.write(given.json, storage.encode(profile, schema_version=SCHEMA_VERSION))
        print(f"wrote {given.json}", file=sys.stderr)
    return EXIT_PASSED


def _subject(given: argparse.Namespace, stack: ExitStack) -> Subject:
    made_up = given.rows is not None or given.dim is not None
    if given.config is not None:
        if made_up:
            raise ConfigError(
                "--rows and --dim are of made-up tables, and --config names others",
                hint="leave out either",
            )
        return configured(given.config, model=given.model, table=given.table)
    if given.model is not None or given.table is not None:
        raise ConfigError("--model and --table need --config", hint="give the JSON file")
    folder = stack.enter_context(workspace(environment().cache_dir / "work"))
    return generated(folder, num_rows=given.rows or _ROWS, dim=given.dim or _DIM, seed=given.seed)


def _profile(given: argparse.Namespace, subject: Subject) -> Profile:
    stream = Stream(
        kind=given.stream,
        zipf_alpha=given.alpha,
        hot_share=given.hot_share,
        hot_keys=given.hot_keys,
        histogram=given.histogram,
        recorded=given.keys,
    )
    keys = batches(
        subject,
        stream,
        batch_size=given.batch_size,
        hotness=given.hotness,
        seed=given.seed,
    )
    first = next(keys)  # before the tables are loaded: a file that does not fit is told at once
    del first
    remarks: list[str] = []
    has_tensorflow = importlib.util.find_spec("tensorflow") is not None
    tables = ModelTables(
        subject.configuration, subject.model, without_gpus=_why_without_gpus(has_tensorflow)
    )
    try:
        stages, peer = _stages(given.peer, subject, tables, has_tensorflow, remarks)
        asked = ask_in_turn(
            stages,
            keys,
            iterations=given.iterations,
            warm_up=given.warm_up,
            threads=given.threads,
            counters=lambda: flat_counters(tables.statistics()),
        )
        found = tables.statistics()
    finally:
        tables.close()
    return Profile(
        recorded_at=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        machine=this_machine().cls,
        configuration=subject.source,
        model=subject.model.model,
        tables=tuple(
            TableResult(
                name=name,
                **{
                    field: found[name][field]
                    for field in ("num_keys", "embedding_dim", "index_kind", "index_bytes")
                },
            )
            for name in subject.table_names
        ),
        key_stream=stream.text,
        batch_size=given.batch_size,
        hotness=given.hotness,
        threads=given.threads,
        iterations=given.iterations,
        warm_up=given.warm_up,
        seed=given.seed,
        peer="none" if peer is None else peer.name,
        stages=_stage_results(stages, asked, peer),
        tiers=tier_results(asked[stages[0].name].counted, subject.table_names),
        remarks=tuple(remarks),
    )


def _why_without_gpus(has_tensorflow: bool) -> str | None:
    if not has_tensorflow:
        return "TensorFlow is not installed, which looks keys up there"
    import tensorflow as tf

    return None if tf.test.is_built_with_cuda() else "this TensorFlow uses no GPU"


def _stages(
    wanted_peer: str,
    subject: Subject,
    tables: ModelTables,
    has_tensorflow: bool,
    remarks: list[str],
) -> tuple[list[Stage], Stage | None]:
    """Return the stages, from the whole lookup inwards, the peer last; and the peer."""
    device = f"/GPU:{tables.gpus[0]}" if tables.gpus else "/CPU:0"
    stages: list[Stage] = []
    if has_tensorflow:
        tables.register(subject.model.model)
        stages.append(TensorFlowLookup(subject, device=device))
    else:
        remarks.append("TensorFlow is not installed: its operation is not measured")
    stages += [GpuCacheLookup(subject, tables, device) for device in tables.gpus]
    stages += [HostLookup(subject, tables), *_tier_stages(subject, tables)]
    peer: Stage | None = None
    if wanted_peer == "tensorflow":
        reason = _why_no_tensorflow_peer(subject, has_tensorflow)
        if reason is None:
            peer = TensorFlowPeer(subject, device=device)
        else:
            remarks.append(f"the peer is numpy.take: {reason}")
            wanted_peer = "numpy"
    if wanted_peer == "numpy":
        peer = NumpyPeer(subject)
    return [*stages, *filter(None, [peer])], peer


def _tier_stages(subject: Subject, tables: ModelTables) -> list[Stage]:
    """Return a stage from each tier downwards, where there is more than the mapped rows."""
    stages: list[Stage] = []
    for number, name in enumerate(subject.table_names):
        there = [Tier[t.upper()] for t in tables.statistics()[name]["tiers"] if t != "updated"]
        if there != [Tier.MAPPED]:
            stages += [TierLookup(subject, tables, number, tier) for tier in there]
    return stages


def _why_no_tensorflow_peer(subject: Subject, has_tensorflow: bool) -> str | None:
    if not has_tensorflow:
        return "TensorFlow is not installed"
    # TensorFlow holds the rows twice while it makes a variable of them.
    needed = 2 * sum(model.rows.nbytes for model in subject.sparse_models)
    free = free_memory_bytes()
    if needed > free:
        return f"TensorFlow's copy of the rows takes {needed:,} bytes, and {free:,} are free"
    return None


def _stage_results(
    stages: Sequence[Stage], asked: dict[str, Asked], peer: Stage | None
) -> tuple[StageResult, ...]:
    calls = {stage.name: call_times(asked[stage.name].times_ns) for stage in stages}
    results = []
    for stage in stages:
        found = asked[stage.name]
        alike = not isinstance(stage, TierLookup) and stage is not peer
        results.append(
            StageResult(
                name=stage.name,
                meaning=stage.meaning,
                calls=calls[stage.name],
                keys_per_s=found.keys / found.elapsed_ns * 1e9,
                bytes_per_s=found.row_bytes / found.elapsed_ns * 1e9,
                of_peer=calls[stage.name].median_ns / calls[peer.name].median_ns
                if peer is not None and alike
                else None,
            )
        )
    return tuple(results)
