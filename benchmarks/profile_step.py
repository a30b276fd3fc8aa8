"""Where a step's time goes: self time per ATen operator, in ns per parameter.

    python -m benchmarks.profile_step --optimizer Automagic_CameAMP --workload lora-sdxl --phase early

The profiler adds about 1 microsecond per operator, so use it for shares; ``step_cpu`` times.
"""

from __future__ import annotations

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.common import CANDIDATE_HELP, argument_parser, markdown, parse_candidate
from benchmarks.step_cpu import Candidate
from benchmarks.workloads import WORKLOADS, GradientPool, make_params


def main(argv: list[str] | None = None) -> str:
    parser = argument_parser(__doc__)
    parser.add_argument("--optimizer", default="Automagic_CameAMP8bit", help=CANDIDATE_HELP)
    parser.add_argument("--workload", default="lora-sdxl", choices=list(WORKLOADS))
    parser.add_argument("--phase", choices=["early", "middle", "late"])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--top", type=int, default=25)
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    work = WORKLOADS[args.workload]
    params, pool = make_params(work), GradientPool(work)
    candidate = Candidate(*parse_candidate(args.optimizer), args.phase, None)
    candidate.build(params, args.steps)
    for _ in range(candidate.lead):
        pool.redraw(params)
        candidate.step()
    with profile(activities=[ProfilerActivity.CPU]) as recorded:
        for _ in range(args.steps):
            pool.redraw(params)
            candidate.step()
    # Only the step itself counts; the views of the gradient pool are outside of what is being asked.
    events = sorted(recorded.key_averages(), key=lambda e: -e.self_cpu_time_total)
    scale = args.steps * work.numel / 1e3  # microseconds -> ns per parameter and step
    total = sum(e.self_cpu_time_total for e in events)
    body = [
        [e.key, e.count / args.steps, e.self_cpu_time_total / scale, 100 * e.self_cpu_time_total / total]
        for e in events[: args.top]
    ]
    text = markdown(["operator", "calls/step", "ns/param", "%"], body)
    print(f"{candidate.title}, {work.name}: {total / scale:.2f} ns/param\n\n{text}")
    return text


if __name__ == "__main__":
    main()
