from pathlib import Path

from tasks.samples import Sample
from tiny import RECIPE, write_project


def sample(folder: Path) -> Sample:
    recipe = RECIPE.replace("name: small", "name: sample").replace('["yes", "no"]', '["yes", "不"]')
    write_project(folder, recipe)
    (folder / "small.yaml").rename(folder / "r.yaml")
    made = Sample(folder, "rows.csv", bad="only one cell", label="不")

    def unseen() -> None:
        head, *rows = made.lines()
        made.write([head, *rows, "a question of its own,perhaps"])

    made.write([line.replace(",no", ",不") for line in made.lines()])
    made.unseen = unseen
    return made
