import json

from jobs.plan import Cell, Plan, Task


def test_a_plan_comes_back_from_its_json_as_it_was() -> None:
    generation = Task(
        "generation", "a" * 12, "runs/demo/generation/" + "a" * 12, None, ("stage=generation",), (0, 1), 4
    )
    bridging = [
        Task("bridging", digit * 12, f"runs/demo/bridging/{digit * 12}", "a" * 12, (f"seed={digit}",), (cell,), 4)
        for cell, digit in enumerate("21")  # parents before children, not in the order of the alphabet
    ]
    tasks = {task.identity: task for task in (generation, *bridging)}
    cells = tuple(
        Cell(f"seed={task.identity[0]}", {"seed": [1, {"a": None}]}, ("a" * 12, task.identity)) for task in bridging
    )
    plan = Plan("mine", "runs", "demo", cells, tasks)

    again = Plan.from_dict(json.loads(json.dumps(plan.to_dict() | {"made": "today"}, sort_keys=True)))

    assert again == plan
    assert [*again.tasks] == [*tasks]
    assert str(again.folder) == "runs/demo/sweeps/mine"
