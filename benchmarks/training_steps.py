"""What a training step of a branch takes, by fork and own layers: `python benchmarks/training_steps.py`.

A step is forward, backward and AdamW over one batch of states at the fork, of full fine-tuning over one batch of token
rows. Where the head reads [CLS], the last layer runs for that position alone (model/few.py); beside it, in turn, the
step with that layer run for all tokens, which gives the same gradients. Random weights and tokens: speed does not
depend on them. In the precision that training takes here (`precision = "auto"`), on all cores, or `--threads`.

Result: benchmarks/results/training_steps.json, printed as a table.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from pages import RESULTS, table
from shapes import branch_of, trunk_of

from trunkline.atomic import write_json
from trunkline.engine.timing import compare
from trunkline.machine import machine
from trunkline.model.branch import states_to
from trunkline.model.tokens import TokenBatch
from trunkline.model.trunk import Trunk
from trunkline.training.loop import precision_of

RESULT = RESULTS / "training_steps.json"
OWN = (1, 2, 3, 6)
FULL = 0
"""In place of own layers: full fine-tuning."""
ROWS, TOKENS, ROUNDS = 32, (32, 128), 9


def main() -> None:
    """Measure, and write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads(), help="of torch (all cores)")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help=f"of every step, in turn ({ROUNDS})")
    parser.add_argument("--out", type=Path, default=RESULT, help="result file")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    trunk = trunk_of("minilm", Path())
    rows = [measured(trunk, own, tokens, options.rounds) for tokens in TOKENS for own in (*OWN, FULL)]
    found = {
        "command": "python benchmarks/training_steps.py",
        "machine": machine(),
        "threads": options.threads,
        "precision": str(precision_of("auto", "cpu")).removeprefix("torch."),
        "rows": ROWS,
        "rounds": options.rounds,
        "steps": rows,
    }
    write_json(options.out, found)
    cells = [
        [str(row["own"] or "full"), str(row["tokens"]), f"{row['whole']:,.0f}", f"{row['first']:,.0f}"] for row in rows
    ]
    print("\n".join(table(["own layers", "tokens a row", "last layer whole, tokens/s", "[CLS] alone"], cells)))


def measured(trunk: Trunk, own: int, tokens: int, rounds: int) -> dict[str, Any]:
    """Tokens a second of both kinds of step, median of rounds in turn."""
    steps = {"whole": step_of(trunk, own, tokens, first=False), "first": step_of(trunk, own, tokens, first=True)}
    times = compare(steps, rounds)
    return {"own": own, "tokens": tokens, **{name: 1000 * ROWS * tokens / ms for name, ms in times.items()}}


def step_of(trunk: Trunk, own: int, tokens: int, *, first: bool) -> Callable[[], None]:
    """A training step of a branch of so many layers, or of all weights of the encoder and a head."""
    encoder, branch = trunk.encoder, branch_of(trunk, "task", own).train()
    parameters = list(branch.parameters())
    if own == FULL:
        encoder = copy.deepcopy(encoder).requires_grad_(True).train()
        parameters += encoder.parameters()
    optimiser = torch.optim.AdamW(parameters, lr=1e-5, fused=True)
    ids = torch.randint(1000, 20_000, (ROWS, tokens))
    batch = TokenBatch(ids=ids, types=torch.zeros_like(ids), mask=torch.ones_like(ids))
    at_fork = torch.randn(ROWS, tokens, trunk.width)
    precision = precision_of("auto", "cpu")

    def step() -> None:
        with torch.autocast("cpu", precision, enabled=precision is not torch.float32):
            states = states_to(encoder, batch, encoder.depth, first=first)[-1] if own == FULL else at_fork
            logits, _ = branch.watched(encoder, [states], [batch.mask], first=first)
            loss = logits.float().square().mean()
        optimiser.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        optimiser.step()

    return step


if __name__ == "__main__":
    main()
