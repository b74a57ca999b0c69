"""The recipe from PDFs to free answers: its papers and splits, a user's papers with a server, kills on the way."""

import json
import os
import runpy
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
from api_server import ApiServer, prompt_of
from conftest import write_jsonl
from tiny import tiny_folder

from sciqa.core import tables
from sciqa.core.errors import InputError
from sciqa.corpus.pdf import read_pdf
from sciqa.generate import EvaluateTextOptions, GenerateOptions, evaluate_text, generate
from sciqa.generate.filter_results import filter_result_rejects_path

RECIPES = Path(__file__).parent.parent / "jobs/recipes"
make_papers, split_triples = (
    SimpleNamespace(**runpy.run_path(str(RECIPES / f"{name}.py"))) for name in ("make_papers", "split_triples")
)


def article(number: int) -> dict[str, str]:
    """Return a made-up article that fills about one passage."""
    kinds = ("ferromagnetic", "superconducting", "radioactive", "translucent", "phosphorescent")
    text = f"Mineral {number} is a {kinds[number % 5]} mineral (group {number}) that is found in region {number}. "
    text += f"Crystallographically interesting specimens, café-brown \\ or grey, weigh {number * 7} grams. " * 6
    return {"title": f"Mineral {number}", "extract": text.strip()}


def test_a_paper_of_two_columns_is_read_as_it_was_written(tmp_path):
    articles = [article(number) for number in range(6)]
    make_papers.write_paper(tmp_path / "a.pdf", "Minerals", articles)
    lines = make_papers.wrap(articles[0]["extract"])
    assert max(map(len, lines)) <= make_papers.WIDTH
    assert any(line.endswith("-") for each in articles for line in make_papers.wrap(each["extract"]))
    title, text = read_pdf((tmp_path / "a.pdf").read_bytes())
    sections = " ".join(f"{each['title']} {each['extract']}" for each in articles)
    assert (title, text) == ("Minerals", f"Minerals {make_papers.NOTICE} {sections} 1")


def test_splits_share_no_passage_and_stay_as_they_are(tmp_path, monkeypatch, capsys):
    rows = [{"passage_id": f"{n // 2:x}", "source": str(n % 7), "output": str(n)} for n in range(1000)]
    table = str(tmp_path / "table")
    tables.begin_table(table, {})
    found = {}
    monkeypatch.setattr(sys, "argv", ["split", table, str(tmp_path)])
    for taken in (rows, rows[::-1][:900]):
        tables.write_table(f"{table}/00000.parquet", pa.Table.from_pylist(taken))
        if not found:
            with pytest.raises(InputError, match="not finished"):
                split_triples.main()
        tables.finish_table(table, {})
        split_triples.main()
        for name in ("train", "validation", "held-out"):
            for row in map(json.loads, (tmp_path / f"{name}.jsonl").read_text().splitlines()):
                assert found.setdefault(row["passage_id"], name) == name
    assert len(found) == 500
    assert 120 < list(found.values()).count("held-out") < 180
    assert 30 < list(found.values()).count("validation") < 70
    assert "held-out: " in capsys.readouterr().out


@pytest.mark.parametrize("name", ["question_writer", "split_triples"])
def test_recipes_refuse_what_is_not_finished_in_one_line(tmp_path, monkeypatch, name):
    monkeypatch.setattr(sys, "argv", [name, str(tmp_path), str(tmp_path)])
    with pytest.raises(SystemExit, match="not there, or not finished; run `sciqa"):
        runpy.run_path(str(RECIPES / f"{name}.py"), run_name="__main__")


@pytest.mark.slow
def test_papers_of_a_user_and_a_server_that_writes(tmp_path):
    (tmp_path / "papers").mkdir()
    for number in range(3):
        made = [article(each) for each in range(20 * number, 20 * number + 20)]
        make_papers.write_paper(tmp_path / f"papers/{number}.pdf", f"Minerals {number}", made)

    def reply(body):
        about = prompt_of(body).partition("\n")[2].partition("\n\nWrite")[0].split()
        return json.dumps({"instruction": f"Tell of {' '.join(about[:9])}", "input": "", "output": " ".join(about[9:])})

    server = ApiServer()
    server.reply = reply
    run = tmp_path / "run"
    command = ["bash", str(RECIPES / "papers.sh"), str(tmp_path / "papers"), str(run), "--engine", "openai"]
    command += ["--base-url", server.url, "--model", "small", "--licence", "CC0"]
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "MODEL": tiny_folder(tmp_path / "llama", "llama")}
    states = []
    for _ in range(2):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
        assert done.returncode == 0, done.stderr
        assert "gain, paired" in done.stdout
        states.append({each: each.stat().st_mtime_ns for each in run.rglob("*.parquet")})
    assert set(server.answered.values()) == {1}
    kept = [path for path in states[0] if path.name != "text_figures.parquet"]
    assert {path: states[0][path] for path in kept} == {path: states[1][path] for path in kept}
    rows = tables.read_table(str(run / "generated/instructions")).to_pylist()
    assert {(row["generator"], row["licence"]) for row in rows} == {("small", "CC0")}
    figures = tables.read_table(str(run / "text_figures.parquet")).to_pylist()
    held_out = (run / "triples/held-out.jsonl").read_text().splitlines()
    assert {(row["model"], row["answers"]) for row in figures} == {
        (name, len(held_out)) for name in ("llama", "tuned-papers")
    }
    server.shutdown()
    server.server_close()


def kill_and_run_again(arguments: list[str], begun: str, manifest: Path) -> dict[Path, int]:
    """Kill a command when it has written a first file, run it again, and return the files of the first run."""
    command = [sys.executable, "-m", "sciqa", *arguments, "--num-cpus", "1"]
    killed = subprocess.Popen(command, stderr=subprocess.PIPE)
    folder = manifest.parent.parent
    while not (found := {path: path.stat().st_mtime_ns for path in folder.glob(begun) if path.name[0] != "."}):
        assert killed.poll() is None, killed.stderr.read().decode()
        time.sleep(0.02)
    killed.kill()
    killed.wait()
    assert not manifest.exists()
    again = subprocess.run(command, capture_output=True, text=True, timeout=400)
    assert again.returncode == 0, again.stderr
    assert manifest.exists()
    return found


@pytest.mark.slow
def test_instructions_of_a_killed_run_are_those_of_another(indexed, tmp_path, cluster):
    model = tiny_folder(tmp_path / "llama", "llama")
    about = {"model": model, "precision": "float32", "reply_tokens": 1000, "temperature": 2.0}
    flags = ["generate", "--kind", "instructions", "--part-passages", "1", "--output", indexed["output"]]
    flags += [part for name, value in about.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    folder = Path(indexed["output"], "generated/_instructions")
    kill_and_run_again(flags, "_instructions/candidates/*.parquet", folder / "manifest.json")
    generate(GenerateOptions(**indexed, kind="instructions", name="other", part_passages=1, **about))
    folders = [f"{indexed['output']}/generated/{name}" for name in ("instructions", "other")]
    for part in range(3):
        killed, other = (tables.read_table(filter_result_rejects_path(folder, part)) for folder in folders)
        assert killed.equals(other)
    killed, other = map(tables.read_table, folders)
    assert killed.equals(other)


@pytest.mark.slow
def test_free_answers_of_a_killed_run_are_those_of_another(tmp_path, embedder, cluster):
    rows = [{"id": f"i{n}", "instruction": f"Name gas {n}.", "output": "Helium is a gas."} for n in range(70)]
    write_jsonl(tmp_path / "held.jsonl", rows)
    about = {"model": tiny_folder(tmp_path / "llama", "llama"), "precision": "float32", "reply_tokens": 60}
    about |= {"text": str(tmp_path / "held.jsonl"), "embedder": str(embedder)}
    about |= {"tuned": tiny_folder(tmp_path / "other", "llama", hidden_size=128)}
    flags = [part for name, value in about.items() for part in (f"--{name.replace('_', '-')}", str(value))]
    manifest = tmp_path / "run/text/_tuned-other/manifest.json"
    begun = kill_and_run_again(
        ["evaluate", *flags, "--output", str(tmp_path / "run")], "tuned-other/*.parquet", manifest
    )
    assert {path: path.stat().st_mtime_ns for path in begun} == begun
    evaluate_text(EvaluateTextOptions(**about, output=str(tmp_path / "whole")))
    for name in ("text/llama", "text/tuned-other", "text_figures.parquet"):
        killed, whole = (tables.read_table(f"{tmp_path}/{run}/{name}") for run in ("run", "whole"))
        assert killed.equals(whole)


@pytest.mark.parametrize(
    ("given", "ran"),
    [
        (["--model", "m"], ["corpus", "generate"]),
        (["--model=m"], ["corpus", "generate"]),
        (["--config", "a.yaml"], []),
        (["--config=a.yaml"], []),
        (["--models", "m"], ["corpus", "finetune", "generate"]),
    ],
)
def test_a_writer_is_trained_only_where_no_model_is_named(tmp_path, given, ran):
    """By a `sciqa` that only says what it was asked, and a `python` that does nothing."""
    (tmp_path / "sciqa").write_text('#!/bin/sh\necho "$1" >> "$LOG"\n[ "$1" != generate ]\n')
    (tmp_path / "python").write_text("#!/bin/sh\n")
    for name in ("sciqa", "python"):
        (tmp_path / name).chmod(0o755)
    log = tmp_path / "log"
    log.touch()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    command = ["bash", str(RECIPES / "papers.sh"), "papers", str(tmp_path / "run"), *given]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert log.read_text().split() == ran
    assert result.returncode == (1 if ran else 2), result.stderr
    assert ran or "--config: pass the options of sciqa generate as flags" in result.stderr


def test_passages_that_are_no_whole_demo_corpus_teach_no_writer(tmp_path, indexed):
    question_writer = SimpleNamespace(**runpy.run_path(str(RECIPES / "question_writer.py")))
    with pytest.raises(SystemExit, match=r"run/passages: no article '.*'; passages of the whole demo corpus expected"):
        question_writer.main(Path(indexed["output"]))
    with pytest.raises(InputError, match="passages: not there, or not finished"):
        question_writer.main(tmp_path / "other")
