"""Two modules of your own: the teacher returns a dict, the student a tuple, and an inner layer is matched too.

python examples/own_models.py
"""

import torch
from torch import nn

import limbeck as lb


class Teacher(nn.Module):
    """A wide network that returns a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU())
        self.head = nn.Linear(64, 4)

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"prediction": self.head(self.body(x))}


class Student(nn.Module):
    """A narrow network that returns a tuple."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(20, 8), nn.ReLU())
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        hidden = self.body(x)
        return self.head(hidden), hidden


def main() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 20)
    y = x[:, :4].argmax(1)
    teacher = Teacher()
    lb.distill(teacher, None, train=(x, y), epochs=10)
    objective = (lb.KL(temperature=2.0, weight=0.5), lb.Label(weight=0.5), lb.Hint(student="body", teacher="body.1"))
    run = lb.distill(Student(), teacher, train=(x, y), objective=objective, epochs=10, batch_size=100)
    print(f"teacher {run.scores['teacher']['accuracy']:.3f}, student {run.scores['student']['accuracy']:.3f}")


if __name__ == "__main__":
    main()
