from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.preprocessing import StandardScaler

from limbeck.core.errors import ConfigError, DataError
from limbeck.data import Table

RNG = np.random.default_rng(0)
VALUES = RNG.normal(3, 5, (20, 2)).round(4)
NAMES = [("dog", "ant", "cat")[i % 3] for i in range(20)]


def write(path, rows, header=("a", "kind", "b"), delimiter=","):
    path.write_text("\n".join(delimiter.join(map(str, row)) for row in (header, *rows)) + "\n", encoding="utf-8")
    return str(path)


def rows(labels=NAMES, values=VALUES):
    return [(a, label, b) for (a, b), label in zip(values, labels, strict=True)]


def all_of(part):
    return part.fetch(torch.arange(len(part)))


@pytest.mark.parametrize(
    ("name", "delimiter", "setting"), [("t.csv", ",", None), ("t.tsv", "\t", None), ("t.txt", ";", ";")]
)
def test_a_table_is_split_and_standardised_by_its_training_rows(tmp_path, name, delimiter, setting):
    path = write(tmp_path / name, rows(), delimiter=delimiter)
    parts = Table(path=path, label="kind", delimiter=setting).load()
    assert parts.train.class_names == ("ant", "cat", "dog")
    assert sorted(torch.cat([p.ids for p in parts]).tolist()) == list(range(20))
    scaler = StandardScaler().fit(VALUES[parts.train.ids.numpy()].astype(np.float32))
    for part in parts:
        got, at = all_of(part), part.ids.numpy()
        np.testing.assert_allclose(got["x"].numpy(), scaler.transform(VALUES[at].astype(np.float32)), atol=1e-5)
        assert [parts.train.class_names[k] for k in got["y"].tolist()] == [NAMES[i] for i in at]


def test_plain_features_and_numbered_labels_are_kept(tmp_path):
    path = write(tmp_path / "t.csv", rows(labels=[i % 4 for i in range(20)]))
    train, _, _ = Table(path=path, label="kind", standardize=False).load()
    np.testing.assert_allclose(all_of(train)["x"].numpy(), VALUES[train.ids.numpy()], rtol=1e-6)
    assert train.class_names is None
    assert train.classes == 4
    assert train.labels.tolist() == (train.ids % 4).tolist()


def test_given_parts_are_used_and_a_constant_column_becomes_zero(tmp_path):
    flat = VALUES.copy()
    flat[:, 1] = 0.1
    path = write(tmp_path / "t.csv", rows(values=flat))
    test, val = (write(tmp_path / f"{n}.csv", rows(values=flat)[:n]) for n in (6, 4))
    parts = Table(path=path, label="kind", test=test, val=val).load()
    assert [len(part) for part in parts] == [20, 4, 6]
    assert torch.equal(all_of(parts.test)["x"], all_of(parts.train)["x"][:6])
    assert float(all_of(parts.train)["x"][:, 1].abs().max()) < 1e-6


FAULTS = {
    "word": ([("1", "ant", "2"), ("1", "ant", "high")], "line 3: column 'b' is 'high', no number"),
    "empty cell": ([("1", "ant", "2"), (" ", "ant", "2")], "line 3: column 'a' is empty"),
    "empty label": ([("1", "", "2")], "column 'kind' is empty"),
    "nan": ([("nan", "ant", "2")], "line 2: column 'a' is 'nan'"),
    "short row": ([("1", "ant")], "line 2: it has 2 cells"),
    "no rows": ([], "no row below the header"),
}


@pytest.mark.parametrize(("held", "said"), FAULTS.values(), ids=FAULTS)
def test_faults_name_row_and_column(tmp_path, held, said):
    path = write(tmp_path / "t.csv", held)
    with pytest.raises(DataError, match=said) as caught:
        Table(path=path, label="kind").load()
    assert "To mend" in str(caught.value)


def test_faults_of_files_and_headers(tmp_path):
    path = write(tmp_path / "t.csv", rows())
    for setting, said in (({"path": str(tmp_path)}, "folder"), ({"path": "no.csv"}, "no such file"),
                          ({"path": path, "label": "kin"}, "did you mean 'kind'")):  # fmt: skip
        with pytest.raises(DataError, match=said):
            Table(**{"label": "kind", **setting}).load()
    with pytest.raises(DataError, match="there twice"):
        Table(path=write(tmp_path / "u.csv", rows(), header=("a", "kind", "a")), label="kind").load()
    with pytest.raises(DataError, match="only column"):
        Table(path=write(tmp_path / "v.csv", [("x",)], header=("kind",)), label="kind").load()
    (tmp_path / "w.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="no text table"):
        Table(path=str(tmp_path / "w.csv"), label="kind").load()
    other = write(tmp_path / "x.csv", rows(), header=("a", "kind", "c"))
    with pytest.raises(DataError, match="columns differ from train's: b, c"):
        Table(path=path, label="kind", test=other).load()
    new = write(tmp_path / "y.csv", [("1", "emu", "2")])
    with pytest.raises(DataError, match="'emu' is not in train"):
        Table(path=path, label="kind", test=new).load()


@pytest.mark.parametrize("bad", [{"delimiter": ",,"}, {"val_share": 0.0}])
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ConfigError):
        Table(path="a", label="b", **bad)
