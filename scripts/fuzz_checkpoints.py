"""Load damaged state dicts and checkpoint files; each must train or be refused by our own exception.

    python scripts/fuzz_checkpoints.py --count 10000

Half are state dicts, half are files. Any other exception, a weight that is not finite, or a pickle that
is executed ends the script with the number of the case. The cases are those of tests/checkpoint/test_fuzz.py.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / name) for name in (".", "src", "trainer/src", "tests")]

from benchmarks.common import RESULTS, append_row, environment  # noqa: E402

from checkpoint import test_fuzz  # noqa: E402


def main(argv: list[str] | None = None) -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--out", type=Path, default=RESULTS / "fuzz_checkpoints.jsonl")
    args = parser.parse_args(argv)
    logging.getLogger("automagic_cameamp").setLevel(logging.ERROR)  # one line a conversion is too many here
    started, found = time.monotonic(), Counter()
    with tempfile.TemporaryDirectory() as folder:
        for case in range(args.count // 2):
            found[f"dict_{test_fuzz.damaged_dict(case)}"] += 1
            found[f"file_{test_fuzz.broken_file(case, Path(folder))}"] += 1
            if case % 500 == 499:
                print(f"{2 * case + 2} of {args.count}: {dict(found)}", flush=True)
    seconds = round(time.monotonic() - started)
    row = {"bench": "fuzz_checkpoints", "count": args.count, **found, "seconds": seconds, **environment()}
    append_row(args.out, row)
    return row


if __name__ == "__main__":
    print(main())
