"""Wave attention: decoding, all queries of a field, and what its certificate costs.

    python -m benchmarks.attention [--tokens 131072] [--long 1048576] [--heads 8] [--threads 1]

Ratios are of one run. The long context lies in a file and is read with an empty page cache.
"""

import argparse
import tempfile
from pathlib import Path

import torch

from benchmarks.passport import passport
from fengwu_ghr.attention.bench import DecodeBench, Row, bench_certificate, bench_decode, bench_field
from fengwu_ghr.attention.probe import Kind

AIM_MEMORY, AIM_FILE, AIM_BUILD, AIM_FIELD = 4.5, 10.5, 6, 4
CERTIFIED: tuple[tuple[Kind, float], ...] = (
    ("iid", 1.0), ("topics", 0.5), ("topics", 1.0), ("field", 1.0), ("field", 2.0),
)  # fmt: skip


def decode_table(bench: DecodeBench, *, where: str, folder: Path, threads: int) -> None:
    rows, build = bench_decode(bench, where=where, folder=folder, note=lambda _: None, threads=threads)  # type: ignore[arg-type]
    print(f"\n### Decoding over {bench.tokens} tokens, {bench.heads} heads, keys and values in {where}\n")
    print("| attention | tokens read | mean error | ms a decode | MB a decode |\n|---|---|---|---|---|")
    for row in rows:
        timed = (
            ("-", "-")
            if row.seconds != row.seconds
            else (f"{1000 * row.seconds:.1f}", f"{row.megabytes:.1f}")
        )
        print(f"| {row.name} | {100 * row.budget:.3g} % | {100 * row.error:.2g} % | {' | '.join(timed)} |")
    wave = _fastest(rows, "wave")
    if where == "memory":
        print(
            f"\nfull attention over wave: {_fastest(rows, 'full').seconds / wave.seconds:.1f} (aim {AIM_MEMORY})"
        )
    else:
        print(
            f"\npage retrieval over wave: {_fastest(rows, 'page').seconds / wave.seconds:.1f} (aim {AIM_FILE})"
        )
    print(
        f"index: {build.seconds:.1f} s, {100 * build.share:.2f} % of its causal prefill (aim <= {AIM_BUILD} %)"
    )


def _fastest(rows: list[Row], name: str) -> Row:
    return min((row for row in rows if row.name.startswith(name)), key=lambda row: row.seconds)


def field_table() -> None:
    print("\n### All queries of 180 x 360 tokens, one of 16 heads of width 64\n")
    print(
        "| gain | length | cluster | retrieved | dense s | index s | wave s | ratio | mean error | 95 % below |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for length in (1.4, 2.8):
        for gain in (2.0, 1.0):
            for cluster in (16, 32, 64):
                row = bench_field(gain=gain, length=length, cluster=cluster, retrieval=0.02)
                print(
                    f"| {gain:g} | {length} | {cluster} | 2 % | {row.dense_seconds:.1f} | {row.build_seconds:.2f} | "
                    f"{row.seconds:.2f} | {row.ratio:.1f} | {100 * row.error:.2f} % | {100 * row.error_95:.2f} % |",
                    flush=True,
                )
    print(f"\naim: ratio >= {AIM_FIELD} with an error <= 1 % at gain 2")


def certificate_table() -> None:
    print("\n### Certified decoding over 16,384 tokens, 64 queries\n")
    print(
        "| keys | gain | error | certified | tokens read | seconds over full attention |\n|---|---|---|---|---|---|"
    )
    for kind, gain in CERTIFIED:
        for error in (0.01, 0.1):
            certified, read, ratio = bench_certificate(kind, gain, error)
            print(
                f"| {kind} | {gain:g} | {100 * error:g} % | {100 * certified:.0f} % | {100 * read:.1f} % "
                f"| {ratio:.1f} |",
                flush=True,
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokens", type=int, default=131072)
    parser.add_argument("--heads", type=int, default=8)
    parser.add_argument("--long", type=int, default=1048576)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--parts", nargs="*", default=["memory", "file", "field", "certificate"])
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with torch.inference_mode(), tempfile.TemporaryDirectory(dir=".") as folder:
        if "memory" in arguments.parts:
            bench = DecodeBench(arguments.tokens, heads=arguments.heads)
            decode_table(bench, where="memory", folder=Path(folder), threads=arguments.threads)
        if "file" in arguments.parts:
            bench = DecodeBench(arguments.long, heads=1, iterations=3)
            decode_table(bench, where="file", folder=Path(folder), threads=arguments.threads)
        if "field" in arguments.parts:
            field_table()
        if "certificate" in arguments.parts:
            certificate_table()
    print(f"\n{passport()}, {arguments.threads} threads")


if __name__ == "__main__":
    main()
