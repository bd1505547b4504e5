"""What each metric is called, which way is better, how it is written and what it means, in one table."""

from __future__ import annotations

from typing import Literal, NamedTuple

from limbeck.report import numbers

__all__ = ["MEASURES", "METRICS", "SEARCH", "Measure", "Metric", "measure", "metric"]


class Metric(NamedTuple):
    """One column of the page. `unit` says whether values are fractions (shown in percent, with `digits`) or plain."""

    key: str
    label: str
    better: Literal["higher", "lower", "neither"]
    unit: Literal["fraction", "plain"]
    meaning: str
    digits: int = 1
    kind: Literal["quality", "confidence", "teacher"] = "quality"

    @property
    def arrow(self) -> str:
        """Which direction is better, as a character; empty where neither is."""
        return {"higher": "↑", "lower": "↓", "neither": ""}[self.better]

    def show(self, value: float | None) -> str:
        """The value with its unit: '73.6 %' or '0.812'."""
        return numbers.percent(value, self.digits) if self.unit == "fraction" else numbers.number(value)

    def spread(self, mean: float, sd: float | None) -> str:
        """Mean and standard deviation: '73.6 ± 0.3 %'; without one, the mean alone."""
        if sd is None:
            return self.show(mean)
        scale, digits, unit = (100, self.digits, " %") if self.unit == "fraction" else (1, 3, "")
        return f"{numbers.number(scale * mean, digits)} ± {numbers.number(scale * sd, digits)}{unit}"

    def differences(self, *values: float) -> list[str]:
        """Differences with their sign, without unit, all with the same decimals: points, or plain numbers."""
        scaled = [100 * v if self.unit == "fraction" else v for v in values]
        digits = numbers.decimals(*scaled, least=self.digits if self.unit == "fraction" else 3, most=4)
        return [numbers.signed(v, digits) for v in scaled]


METRICS: dict[str, Metric] = {
    row.key: row
    for row in (
        Metric("accuracy", "Accuracy", "higher", "fraction", "Share of the samples that are answered correctly."),
        Metric("top5_accuracy", "Top 5", "higher", "fraction",
               "Share of the samples whose true class is among the five likeliest."),
        Metric("macro_precision", "Macro precision", "higher", "fraction",
               "Share of the answers naming a class that are right, averaged over classes."),
        Metric("macro_recall", "Macro recall", "higher", "fraction",
               "Share of each class that is found, averaged over classes: small classes count as much as large ones."),
        Metric("macro_f1", "Macro F1", "higher", "fraction",
               "Harmonic mean of precision and recall for each class, averaged over classes."),
        Metric("nll", "NLL", "lower", "plain",
               "Negative log-likelihood of the true label, in nats: small when the model is right and sure of it.",
               kind="confidence"),
        Metric("brier", "Brier", "lower", "plain",
               "Squared distance between the predicted probabilities and the truth, summed over classes: from 0 to 2.",
               kind="confidence"),
        Metric("ece", "ECE", "lower", "fraction",
               "Expected calibration error: how far the stated confidence is from the share that is correct.", 2,
               kind="confidence"),
        Metric("adaptive_ece", "Adaptive ECE", "lower", "fraction",
               "The same over bins that hold equally many samples, so that crowded confidences are told apart.", 2,
               kind="confidence"),
        Metric("mse", "MSE", "lower", "plain",
               "Mean squared error, in the unit of the label squared."),
        Metric("mae", "MAE", "lower", "plain",
               "Mean absolute error, in the unit of the label."),
        Metric("r2", "R²", "higher", "plain",
               "Share of the labels' variance that is explained: 1 is perfect, 0 is no better than their mean."),
        Metric("pearson", "Pearson", "higher", "plain",
               "Linear correlation of answers and labels, from -1 to 1."),
        Metric("spearman", "Spearman", "higher", "plain",
               "Whether answers and labels are in the same order, from -1 to 1."),
        Metric("agreement", "Agreement", "higher", "fraction",
               "Share of the samples on which the student gives the teacher's answer, right or wrong.",
               kind="teacher"),
        Metric("teacher_kl", "KL to teacher", "lower", "plain",
               "How far the student's probabilities are from the teacher's, in nats; 0 means equal.",
               kind="teacher"),
        Metric("teacher_rank", "Rank with teacher", "higher", "plain",
               "Whether the student puts all classes in the teacher's order: 1 is the same, 0 is unrelated.",
               kind="teacher"),
        Metric("teacher_mse", "MSE to teacher", "lower", "plain",
               "Mean squared difference between the student's answers and the teacher's.",
               kind="teacher"),
        Metric("perplexity", "Perplexity", "lower", "plain",
               "Among how many tokens, all equally likely, it seems to choose: the exponential of NLL per token."),
        Metric("token_accuracy", "Token accuracy", "higher", "fraction",
               "Share of the tokens that are the likeliest at their place."),
        Metric("bleu", "BLEU", "higher", "plain",
               "How much of a translation's wording is in the reference, from 0 to 100."),
        Metric("word_error_rate", "WER", "lower", "fraction",
               "Words to change, add or remove to get the reference, as a share of its words; may be above 100 %."),
        Metric("character_error_rate", "CER", "lower", "fraction", "The same for characters."),
    )
}  # fmt: skip


class Measure(NamedTuple):
    """What arms are compared in beside their scores. `path` leads to its values in the evidence of a seed."""

    key: str
    label: str
    better: Literal["higher", "lower", "neither"]
    unit: Literal["fraction", "plain"]
    meaning: str
    path: tuple[str, ...]

    @property
    def arrow(self) -> str:
        """Which direction is better, as a character."""
        return {"higher": "↑", "lower": "↓"}.get(self.better, "")


MEASURES: dict[str, Measure] = {
    row.key: row
    for row in (
        Measure("churn", "Churn", "lower", "fraction",
                "Share of the answers that change when nothing but the seed does. Lower is steadier.", ()),
        Measure("gap", "Gap", "lower", "fraction",
                "Accuracy on the training samples minus accuracy on the test samples. A large one is overfitting.",
                ("overfitting", "gap")),
        Measure("jitter_loss", "Jitter of the loss", "lower", "plain",
                "How much the training loss wobbles between records, beside its level.", ("jitter", "loss")),
        Measure("jitter_grad_norm", "Jitter of the gradient", "lower", "plain",
                "The same for the length of the gradient.", ("jitter", "grad_norm")),
        Measure("input_noise", "Accuracy, noisy inputs", "higher", "fraction",
                "Mean accuracy while noise of five sizes is added to the inputs.",
                ("sensitivity", "inputs", "accuracy")),
        Measure("weight_noise", "Accuracy, noisy weights", "higher", "fraction",
                "Mean accuracy while noise of five sizes is added to the weights.",
                ("sensitivity", "weights", "accuracy")),
        Measure("corruption", "Accuracy, corrupted inputs", "higher", "fraction",
                "Mean accuracy on noisy, blurred, faded and shifted samples.", ("robustness", "corruptions")),
        Measure("pgd", "Accuracy under attack", "higher", "fraction",
                "Mean accuracy on inputs moved a little, step by step, to fool this very model.",
                ("robustness", "attacks", "pgd", "accuracy")),
        Measure("attribution", "Looks where its teacher looks", "higher", "plain",
                "Rank correlation of which inputs move the answer: 1 is the same, 0 is what chance gives.",
                ("attribution", "gradient_input", "rank")),
    )
}  # fmt: skip


SEARCH: dict[str, str] = {
    "Attempt": "A model changed by one step at one strength. It comes from the attempt named beneath it.",
    "Strength": "How far a step goes: the share that is removed, merged or set to zero. Pruning sets each layer's own "
                "share by how little that hurts, more for a greater strength. Some steps have none.",
    "Repaired": "Trained after the change, to answer as the original does. Without gain it is undone.",
    "Kept, left": "The search went on from here, or did not; the last column says why.",
    "Result": "Of all attempts that lose no more than they may, the one nearest to the costs that were asked for; of "
              "several within them, that with the best score.",
    "MACs": "Multiply-accumulates: how many products a model adds up for one sample.",
    "Latency": "How long a call takes on this machine, measured in turns with the original.",
}  # fmt: skip
"""What the words of a search mean."""


def measure(key: str) -> Measure:
    """The row of a measure; one nobody described is shown by its own name, as a plain number, and not judged."""
    return MEASURES.get(key) or Measure(key, metric(key).label, "neither", "plain", "", ())


def metric(key: str) -> Metric:
    """The row of a metric; a metric nobody described is shown by its own name, as a plain number."""
    label = key.replace("_", " ").strip() or key
    return METRICS.get(key) or Metric(key, label[:1].upper() + label[1:], "neither", "plain", "")
