"""Decide the method where params.yaml says auto."""

from datapool.core.outputs import Outputs
from datapool.core.params import load_params
from datapool.core.plan import make_plan, write_plan
from datapool.terminal import run


def plan() -> None:
    """Write what rank has to know of the stopping condition, so that it runs again only when that changes."""
    params = load_params()
    outputs, n_samples = Outputs(params.output_dir), params.stopping_condition.n_samples
    write_plan(outputs.plan, make_plan(params.method, n_samples, params.ranking.n_clusters))


if __name__ == "__main__":
    run(plan)
