"""NL-FL: what a prover is shown and believes, what is read out of replies, the steps and what they drop, the measures."""

from __future__ import annotations

import json
import os
import shutil
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
import torch
from conftest import broken_rows, refusal
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.cli import main
from posttrain.records import Place
from posttrain.systems.nl_fl_hybrid import prompts, proved
from posttrain.systems.nl_fl_hybrid.measures import Answers, majority, measures_of, same_string
from posttrain.systems.nl_fl_hybrid.pipeline import Pipeline, checked_lines
from posttrain.systems.nl_fl_hybrid.problems import Problem, problem, problems, without_choice
from posttrain.systems.nl_fl_hybrid.prover import CachedProver, ProverDied, Verdict, prover_of
from posttrain.systems.nl_fl_hybrid.prover.lean import LeanServer
from posttrain.systems.nl_fl_hybrid.prover.script import Refused, check_statement, sentences, variables, witness
from posttrain.systems.nl_fl_hybrid.replies import boxed, last_block, plain_answer, proof_in, theorem_in, thought_in

LINEAR = "exists x : Z, 3 * x + 5 = 26"
LEAST = "exists m : Z, m mod 3 = 2 /\\ m mod 5 = 3 /\\ 0 <= m /\\ (forall n, 0 <= n -> n mod 3 = 2 -> n mod 5 = 3 -> m <= n)"
RIGHT = [
    (LINEAR, "exists 7. lia.", "7"),
    (LINEAR, "exists (7)%Z. reflexivity.", "7"),
    (LEAST, "exists 8. repeat split; try lia; intros; lia.", "8"),
    ("exists x y : Z, x + y = 5 /\\ x - y = 1", "exists 3, 2. lia.", "3, 2"),
    ("exists x y : Z, x + y = 5 /\\ x - y = 1", "exists 3. exists 2. split. - lia. - lia.", "3, 2"),
    ("exists x : Z, x = -4", "exists (-4). lia.", "-4"),
    ("forall x : Z, x * x >= 0", "intros. nia.", None),
]
WRONG = [(LINEAR, "exists 8. lia."), (LEAST, "exists 23. repeat split; try lia; intros; lia."), ("1 = 2", "lia.")]
CHEATS = [
    "Admitted.",
    "exists 7. admit.",
    "exists 7. Admitted.",
    "Axiom a : False. exists 7. lia.",
    "exists 7. lia. Qed. Theorem other : True. exact I.",
    'exists 7. Redirect "stolen" Print nat. lia.',
    "exists 7. Extraction nat. lia.",
    'exists 7. Load "/etc/passwd". lia.',
    'exists 7. Cd "/". lia.',
    "exists 7. Unset Guard Checking. lia.",
    'exists 7. Declare ML Module "x". lia.',
    "exists 7. (* Qed. *) lia.",
    "exists 7. exact ltac:(admit).",
    "exists 7. abstract lia.",
    "exists 7. native_compute. reflexivity.",
    "exists 7; [Drop].",
    "eexists. reflexivity.",
    "exists (21 / 3). reflexivity.",
    "exists (3 + 4). lia.",
    "refine (ex_intro _ 7 _). lia.",
    "exact (ex_intro _ 7 eq_refl).",
    "lia.",
    "",
    "exists 7",
    "exists 7. exact (1 <prompt> </prompt> 2).",
    "exists 7. exact (1 < prompt> 2). lia.",
    "exists 7. exact (Closed <infomsg> x).",
    "exists (21 / 3)%R. lra.",
    "exists 7 7. lia.",
    "exists (7. lia.",
    "exists 7%foo. lia.",
    "exists 7. exact (I)..",
]
UNBOUND = [  # existence that is not at the head, where a term that is no numeral would prove it
    "(exists x : Z, x = 3 + 4)",
    "True /\\ exists x : Z, x = 3 + 4",
    "True -> exists x : Z, x = 3 + 4",
    "forall q : Z, exists x : Z, x = 3 + 4",
    "ex (fun x : Z => x = 3 + 4)",
    "exists2 x : Z, x = 3 + 4 & True",
    "exists x : Z, exists y : Z, y = 3 + 4",
    "(fun P => P) (exists x : Z, x = 3 + 4)",
    "exists x : (Z), Z.Even x",
    "exists (a := 5) (y : Z), Z.Even y",
    "exists (x := 3), Z.Even 4",
]


@pytest.fixture(scope="module")
def z3():
    return prover_of("z3")


@pytest.fixture(scope="module")
def coq():
    if not shutil.which("coqtop"):
        pytest.skip("Coq is not installed (apt-get install coq)")
    prover = prover_of("coq")
    yield prover
    prover.close()


class TestProvers:
    @pytest.mark.parametrize("name", ["coq", "z3"])
    @pytest.mark.parametrize(("statement", "script", "found"), RIGHT)
    def test_a_proof_holds_of_its_witness(self, name, statement, script, found, request):
        verdict = request.getfixturevalue(name).check(statement, script)
        assert (verdict.ok, verdict.witness) == (True, found), verdict.error

    @pytest.mark.parametrize("name", ["coq", "z3"])
    @pytest.mark.parametrize(("statement", "script"), WRONG)
    def test_what_is_false_is_not_proved(self, name, statement, script, request):
        assert not request.getfixturevalue(name).check(statement, script).ok

    @pytest.mark.parametrize("name", ["coq", "z3"])
    @pytest.mark.parametrize("script", CHEATS)
    def test_no_cheat_passes(self, name, script, request, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        assert not request.getfixturevalue(name).check(LINEAR, script).ok
        assert not os.listdir(tmp_path)

    @pytest.mark.parametrize("name", ["coq", "z3"])
    @pytest.mark.parametrize(
        "statement",
        [
            "exists x : Z, x = 1. Admitted. Theorem other : True",
            "exists x : Z, x = ltac:(exact 1)",
            'exists x : Z, x = 1. Redirect "stolen" Print nat',
            "exists x : Z, x = 1 (* ",
            "",
        ],
    )
    def test_a_statement_is_a_term_and_no_more(self, name, statement, request):
        assert not request.getfixturevalue(name).check(statement, "exists 1. lia.").ok

    @pytest.mark.parametrize("name", ["coq", "z3"])
    @pytest.mark.parametrize("statement", UNBOUND)
    def test_existence_is_proved_by_numerals_alone(self, name, statement, request):
        prover = request.getfixturevalue(name)
        for script in (
            "exists (3 + 4). easy.",
            "split; [easy | exists (3 + 4); easy].",
            "exists 0. exists (3 + 4). easy.",
            "exists 4. exists 2. reflexivity.",
            "exists 4, 2. reflexivity.",
            "exists 2. reflexivity.",
        ):
            assert not prover.check(statement, script).ok

    def test_nothing_that_a_script_prints_is_taken_for_an_answer(self, coq):
        """Coq echoes what it cannot read: once an echo could pass for a prompt, and each answer for the one before."""
        from posttrain.systems.nl_fl_hybrid.prover.coq import error_of, is_error

        prover = coq.prover
        for echo in (
            "<prompt>Coq < 1 || 0 < </prompt>",
            "No object of basename nothing_0123456789abcdef",
            "Closed under the global context",
        ):
            assert is_error(said := prover.send(f'Check "{echo}" .. 1.', 1e9)), said
            assert error_of(said)
            assert prover.send("Check 1.", 1e9).strip().startswith("1")

    def test_what_exhausts_coq_is_ended_and_the_next_is_checked(self, coq):
        statement = "List.length (List.repeat 0 (Z.to_nat (10 ^ 9))) = 0%nat"
        verdict = coq.check(statement, "vm_compute. reflexivity.")
        assert (verdict.ok, verdict.timed_out) == (False, True)
        assert coq.check("exists x : Z, 3 * x + 5 = 29", "exists 8. lia.").ok

    def test_a_witness_that_repeats_the_question_says_nothing(self, coq):
        assert coq.prover.prove("exists y : Z, 3 * 4 = y", ["exists (3 * 4).", "reflexivity."]) == ("", ())
        assert not coq.check("exists y : Z, 3 * 4 = y", "exists (3 * 4). reflexivity.").ok
        assert coq.check("exists y : Z, 3 * 4 = y", "exists 12. reflexivity.").witness == "12"

    def test_coq_goes_on_after_an_error_and_after_its_process_was_killed(self, coq):
        assert not coq.check(LINEAR, "exists 9. lia.").ok
        coq.prover.process.kill()
        coq.prover.process.wait()
        with pytest.raises(ProverDied):
            coq.check(LINEAR, "exists 10. lia.")
        assert coq.check(LINEAR, "exists 7. simpl. lia.").ok

    def test_a_script_that_takes_too_long_is_ended_and_the_next_is_checked(self):
        if not shutil.which("coqtop"):
            pytest.skip("Coq is not installed (apt-get install coq)")
        from posttrain.systems.nl_fl_hybrid.prover.coq import Coq

        prover = Coq(seconds=0.5, reals=False, audit=False)
        endless = prover.check("exists x : Z, Z.iter (2 ^ 40) (fun y => y + 1) 0 = x", "exists 1. vm_compute. lia.")
        assert (endless.ok, endless.timed_out) == (False, True)
        assert prover.check(LINEAR, "exists 7. lia.").ok
        prover.close()

    def test_coq_names_axioms_that_are_not_allowed(self, coq):
        coq.prover.send("Axiom nothing : False.", 1e9)
        coq.prover.send("Hint Resolve nothing : core.", 1e9)
        verdict = coq.check("1 = 2", "exfalso. auto.")
        assert (verdict.ok, verdict.axioms) == (False, ("nothing",))
        coq.prover.end()

    def test_reals_and_rationals_are_coqs_alone(self, coq, z3):
        for statement, script in (
            ("exists x : R, (2 * x = 3)%R", "exists (3/2)%R. lra."),
            ("exists x : Q, (x + 1 == 3#2)%Q", "exists (1#2). reflexivity."),
        ):
            assert coq.check(statement, script).ok
            assert "integers" in z3.check(statement, script).error or "Q" in statement

    @pytest.mark.parametrize(
        ("statement", "value", "true"),
        [
            ("exists x : Z, - x ^ 2 = -9 /\\ x > 0", 3, True),
            ("exists x : Z, 7 / 2 = x", 3, True),
            ("exists x : Z, -7 / 2 = x", -4, True),  # Coq rounds down
            ("exists x : Z, -7 mod 3 = x", 2, True),
            ("exists x : Z, 0 <= x < 3 -> False \\/ x = 2", 2, True),
            ("exists x : Z, x = 1 <-> x = 2", 1, False),
            ("exists x : Z, False -> False <-> x = 0", 0, True),  # <-> binds tighter than ->
            ("exists x : Z, ~ x = 1 /\\ x = 1 \\/ x = 1", 1, True),
            ("exists x : Z, forall y, y * x = y", 1, True),
            ("exists x : Z, 2 - 1 - 1 = x", 0, True),
        ],
    )
    def test_z3_reads_statements_as_coq_does(self, coq, z3, statement, value, true):
        script = f"exists ({value}). intuition nia."
        assert z3.check(statement, script).ok == true
        assert coq.check(statement, script).ok == true, coq.check(statement, script).error

    def test_what_is_nested_too_deep_is_refused(self, z3):
        statement = f"exists x : Z, {'(' * 500}x = 1{')' * 500}"
        assert "deep" in z3.check(statement, "exists 1. lia.").error

    @given(st.text() | st.text("existsx :Z,()+-*/=<>0123456789.\\|;[]{}~^%#", max_size=60), st.text(max_size=40))
    @settings(deadline=None, max_examples=300)
    def test_no_text_raises_anything(self, z3, statement, script):
        for asked in ((statement, script), (LINEAR, statement), (statement, "exists 1. lia.")):
            assert isinstance(z3.check(*asked), Verdict)

    @given(st.integers(-50, 50), st.integers(1, 9), st.integers(-20, 20))
    @settings(deadline=None, max_examples=50)
    def test_z3_believes_the_solution_and_no_other(self, z3, value, factor, offset):
        statement = f"exists x : Z, {factor} * x + ({offset}) = {factor * value + offset}"
        assert z3.check(statement, f"exists ({value}). lia.").ok
        assert not z3.check(statement, f"exists ({value + 1}). lia.").ok

    def test_a_prover_that_is_missing_says_what_to_install(self, monkeypatch):
        monkeypatch.setattr(shutil, "which", lambda name: None)
        with pytest.raises(ValueError, match="apt-get install coq"):
            prover_of("coq")
        with pytest.raises(ValueError, match="`prover=isabelle`"):
            prover_of("isabelle")


class TestScripts:
    def test_bullets_and_braces_are_sentences(self):
        assert sentences("split. - lia. - { lia. }") == ["split.", "-", "lia.", "-", "{", "lia.", "}"]

    def test_variables(self):
        assert [
            variables(text)
            for text in (
                LINEAR,
                "exists x y : Z, x = y",
                "exists (x : Z) (y : Q), x = 1",
                "1 = 1",
                "(exists x, exists y, x = y)",
            )
        ] == [1, 2, 2, 0, 2]

    @pytest.mark.parametrize(
        ("script", "found"),
        [
            ("exists 7%nat. easy.", "7"),
            ("exists 7 ; lia.", "7"),
            ("exists 2#4. easy.", "1/2"),
            ("exists (-6/4)%R. lra.", "-3/2"),
            ("exists 00007. lia.", "7"),
            ("exists (-4)%Z. lia.", "-4"),
        ],
    )
    def test_numerals_are_in_their_normal_form(self, script, found):
        assert witness(LINEAR, sentences(script)) == found

    @pytest.mark.parametrize("script", ["exists (1#0). easy.", f"exists {'9' * 5000}. lia."])
    def test_what_is_no_numeral(self, script):
        with pytest.raises(Refused):
            witness(LINEAR, sentences(script))

    @pytest.mark.parametrize("text", ["Z.gcd 4 6 = 2", "(1#2 == 2#4)%Q"])
    def test_terms_may_be_qualified(self, text):
        assert check_statement(text) == text

    def test_refusals_say_why(self):
        with pytest.raises(Refused, match="`Print`"):
            sentences("Print nat.")


class TestLean:
    """Against a stand-in that speaks the protocol of Kimina Lean Server: no package registry has a Lean."""

    @pytest.fixture
    def server(self):
        asked: list[dict] = []

        class Stand(BaseHTTPRequestHandler):
            def do_POST(self):
                asked.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
                code = asked[-1]["codes"][0]["proof"]
                body = {"messages": [], "env": 0}
                at = {"line": code.count("\n") + 1, "column": 0}
                found = {"omega": "[propext, Quot.sound]", "simp": "[propext, mine]", "linarith": "[propext]"}
                for tactic, axioms in found.items():
                    if tactic in code:
                        said = f"'t' depends on axioms: {axioms}"
                        body["messages"].append({"severity": "info", "pos": at, "data": said})
                if "linarith" in code:
                    body["messages"].append({"severity": "warning", "data": "declaration uses 'sorry'"})
                if "norm_num" in code:  # said by the script itself, and not by `#print axioms`
                    said = "'t' does not depend on any axioms"
                    body["messages"].append({"severity": "info", "pos": {"line": 9, "column": 0}, "data": said})
                if "rfl" in code:
                    body["messages"].append({"severity": "error", "data": "unsolved goals"})
                answer = {"results": [{"custom_id": "posttrain", "error": None, "response": body}]}
                if "decide" in code:
                    answer = {"results": [{"custom_id": "posttrain", "error": "Timed out", "response": None}]}
                if "ring" in code:
                    answer = {"detail": "busy"}
                text = json.dumps(answer).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *arguments):
                pass

        server = HTTPServer(("127.0.0.1", 0), Stand)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()
        server.server_close()

    def test_the_protocol(self, server):
        address, asked = server
        prover, statement = LeanServer(address), "theorem t : ∃ x : ℤ, 3 * x + 5 = 26 := by"
        found = prover.check(statement, "use 7\nomega")
        assert (found.ok, found.witness) == (True, "7")
        code = asked[0]["codes"][0]["proof"]
        assert code.startswith("import Mathlib")
        assert code.rstrip().endswith("#print axioms t")
        assert prover.check(statement, "use 7\nsimp").axioms == ("mine",)
        assert prover.check(statement, "use 7\nrfl").error == "unsolved goals"
        assert prover.check(statement, "use 7\ndecide").timed_out
        assert not prover.check(statement, "use 7\ntrivial").ok  # nobody said what it rests on
        assert not prover.check(statement, "use 7\nnorm_num").ok
        assert "sorry" in prover.check(statement, "use 7\nlinarith").error
        with pytest.raises(ProverDied, match="did not answer as one"):
            prover.check(statement, "use 7\nring")

    @pytest.mark.parametrize(
        "script",
        [
            *(
                "sorry",
                "use 7\nadmit",
                "exact foo\naxiom foo : False",
                "#eval 1",
                "native_decide",
                "exact sorryAx _ true",
            ),
            *('trace "x"', "stop", "run_meta x", "decide +native", "@[simp] def x := 1", "elab_rules : tactic"),
        ],
    )
    def test_cheats_are_not_sent(self, server, script):
        address, asked = server
        assert not LeanServer(address).check("theorem t : 1 = 2 := by", script).ok
        assert asked == []

    @pytest.mark.parametrize(
        "script",
        [
            *(
                "use 3 + 4",
                "use 3 * n",
                "refine ⟨3^2, rfl⟩",
                "use 2.5",
                "exact ⟨_, rfl⟩",
                "omega",
                "use 1/0",
                "use 7/2",
            ),
            *("use 7\n    + 1", "use (7, 3)", "use 3, t", f"use {'9' * 5000}", "use (7", ""),
        ],
    )
    def test_a_witness_is_a_closed_numeral(self, server, script):
        address, asked = server
        assert not LeanServer(address).check("theorem t : ∃ x : ℕ, x = 7 := by", script).ok
        assert asked == []

    def test_a_server_that_is_not_there(self):
        with pytest.raises(ProverDied, match="http://127.0.0.1:9"):
            LeanServer("http://127.0.0.1:9").check("theorem t : 1 = 1 := by", "rfl")


class TestReplies:
    def test_blocks_theorems_thoughts_and_answers(self):
        assert last_block("```md\nfirst\n```\n```markdown\nlast\n```\n```py\nx\n```", "md", "markdown") == "last"
        assert (
            theorem_in("Here:\ntheorem a (x : ℝ) :\n  x = x := by\n  rfl", "lean4")
            == "theorem a (x : ℝ) :\n  x = x := by"
        )
        assert (
            theorem_in("```coq\nTheorem a : exists x : Z,\n  Z.abs x = 7.\n```", "coq") == "exists x : Z, Z.abs x = 7"
        )
        assert thought_in("<think>one</think>two") == "one"
        assert thought_in("<think>cut off") == "cut off"
        assert thought_in("none") is None
        assert boxed("\\boxed{1} then \\boxed{\\frac{1}{2}}") == "\\frac{1}{2}"
        assert boxed("#### 4") is None

    def test_a_lean_proof_must_be_of_the_statement_that_was_given(self):
        statement = "theorem a : 1 = 1 := by"
        assert proof_in(f"```lean4\nimport Mathlib\n\n{statement}\n  rfl\n```", statement, "lean4") == "  rfl"
        assert proof_in("```lean4\ntheorem a : True := by\n  trivial\n```", statement, "lean4") is None
        assert proof_in(f"```lean4\ntheorem b : False := by sorry\n{statement}\n  rfl\n```", statement, "lean4") is None

    def test_a_coq_proof_may_stand_between_proof_and_qed(self):
        assert (
            proof_in("```coq\nTheorem a : 1 = 1.\nProof.\n  reflexivity.\nQed.\n```", "1 = 1", "coq") == "reflexivity."
        )
        assert proof_in("```coq\nexists 7. lia.\n```", LINEAR, "coq") == "exists 7. lia."

    @given(st.text() | st.text("`mdcoqlean4theorm:=by<think>/\\boxed{}.\n ", max_size=200))
    @settings(deadline=None)
    def test_no_text_raises(self, text):
        for language in ("lean4", "coq"):
            theorem_in(text, language)
            proof_in(text, "theorem a : 1 = 1 := by", language)
        last_block(text, "md")
        thought_in(text)
        boxed(text)

    def test_the_released_comparison(self):
        assert plain_answer("\\left( 1, \\dfrac{1}{2} \\right)") == "(1,\\frac{1}{2})"


class TestProblems:
    def test_the_three_forms(self, tmp_path):
        path = tmp_path / "p.jsonl"
        rows = [
            {"problem": "1+1?", "answer": "2", "unique_id": "a"},
            {"name": "b", "informal_prefix": "/-- What is $3$ squared? Show that it is 9.-/\n", "formal_statement": "theorem b : 3 ^ 2 = 9 := by\n"},
            {"name": "c", "informal_prefix": "/-- Prove that $1 = 1$.-/"},
            {"question": "2+2?", "answer": 4, "id": "d", "statement": "exists x : Z, x = 4"},
        ]  # fmt: skip
        path.write_text("\n".join(map(json.dumps, rows)))
        found, without = problems(path)
        assert without == 1
        assert [(one.key, one.question, one.answer) for one in found] == [
            ("a", "1+1?", "2"),
            ("b", "What is $3$ squared?", "9"),
            ("d", "2+2?", "4"),
        ]

    @pytest.mark.parametrize(
        ("answer", "found"),
        [
            ("\\textbf{(C) }119", "119"),
            ("\\textbf{(E) }21{,}000", "21{,}000"),
            ("\\text{(C)}\\ 119", "119"),
            ("\\mathrm{(D)}\\ 4", "4"),
            ("\\text{A}", "A"),
            ("\\text{Even}", "\\text{Even}"),
            ("\\text{(E) None}", "None"),
            ("3\\sqrt{2}", "3\\sqrt{2}"),
        ],
    )
    def test_the_letter_of_a_choice_is_no_part_of_its_answer(self, answer, found):
        assert without_choice(answer) == found

    @pytest.mark.parametrize(
        ("row", "message"),
        [
            ({"answer": "2"}, "p.jsonl, line 1: there is no question"),
            ({"question": "?", "answer": [1]}, r"p.jsonl, line 1: the answer \[1\]"),
            ({"question": "?"}, "not one of its rows has an `answer`"),
        ],
    )
    def test_bad_rows(self, tmp_path, row, message):
        path = tmp_path / "p.jsonl"
        path.write_text(json.dumps(row))
        with pytest.raises(ValueError, match=message):
            problems(path)


class Says:
    """A player that answers each ask by a function of its text: a stand-in for a model that one cannot have here."""

    def __init__(self, answer):
        self.answer, self.asked = answer, []

    def sample(self, asks):
        out = []
        for ask in asks:
            self.asked.append(ask)
            out.append(pt.Reply(self.answer(ask.messages[-1]["content"], ask), torch.zeros(1), None))
        return out


class TestPipeline:
    @staticmethod
    def general(text: str, ask: pt.Ask) -> str:
        if "its answer exists" in text:
            return "```md\nThere is x.\n```" if ask.seed % 2 else "no block"
        if "somebody's thoughts" in text:
            return f"\\boxed{{{7 if 'seven' in text else 8}}}"
        return "\\boxed{6}" if ask.temperature == 0.8 else "\\boxed{5}"

    def run(self, folder: Path, **options):
        reasoner = Says(
            lambda text, ask: (
                "<think>seven</think>\n```coq\nexists 7. lia.\n```" if ask.seed % 3 else "```coq\nexists 8. lia.\n```"
            )
        )
        formaliser = Says(lambda text, ask: f"```coq\nTheorem t : {LINEAR}.\n```" if ask.seed % 5 else "none")
        general = Says(self.general)
        made = Pipeline(general, formaliser, reasoner, folder, "coq", 16, 8, quiet=True, **options)
        return made.run([Problem("p", "3x + 5 = 26?", "7"), Problem("q/1", "again?", "7")]), (
            general,
            formaliser,
            reasoner,
        )

    def test_budgets_temperatures_and_what_is_dropped(self, tmp_path):
        (direct, formal, dropped), (general, formaliser, reasoner) = self.run(tmp_path)
        assert [len(line["answers"]) for line in direct] == [16, 16]
        assert {ask.temperature for ask in formaliser.asked + reasoner.asked} == {0.7}
        assert sorted({ask.temperature for ask in general.asked}) == [0.6, 0.7, 0.8]
        assert len(formaliser.asked) == 16 - dropped["statement without a block"]
        assert len(reasoner.asked) == len(formaliser.asked) - dropped["no theorem"]
        assert len(formal) == len(reasoner.asked) - dropped["proof without a block"]
        for line in formal:  # without a thought the question is solved anew
            assert line["answer"] == ("7" if line["thought"] else "5")
        checked = checked_lines(formal, prover_of("z3"))
        assert all(line["proved"] == ("7" in line["script"]) for line in checked)
        assert {line["answer"] for line in checked if line["proved"]} == {"7"}

    def test_a_second_run_asks_nobody(self, tmp_path):
        first, _ = self.run(tmp_path)
        second, players = self.run(tmp_path)
        assert second == first
        assert not any(player.asked for player in players)

    def test_the_mixed_input_has_the_question_twice(self):
        system, asked = prompts.prove("How many?", "theorem a : 1 = 1 := by", "lean4")
        assert system["content"] == "You are an expert in mathematics and Lean 4."
        assert asked["content"].count("How many?") == 2
        assert "import Aesop" in asked["content"]
        assert "How many?" not in prompts.prove("How many?", "t", "lean4", mixed=False)[1]["content"]


class TestMeasures:
    def test_by_hand(self):
        found = [
            Answers("7", ["1", "7", "2", "1"], ["7", "7", "3"], (True, False, False)),
            Answers("7", ["1", None, "1", "1"], ["3", "7"], (False, True)),
            Answers("7", ["7", "7", "7", "7"], []),
        ]
        assert measures_of(found, same_string, 2) == {
            "words pass@1": pytest.approx(1 / 3),
            "words pass@2": pytest.approx(2 / 3),
            "words pass@4": pytest.approx(2 / 3),
            "proofs pass@1": pytest.approx(1 / 3),
            "proofs pass@2": pytest.approx(2 / 3),
            "hybrid pass@4": 1.0,
            "words majority": pytest.approx(1 / 3),
            "proofs majority": pytest.approx(1 / 3),
            "hybrid majority": pytest.approx(2 / 3),
            "hybrid verified": 1.0,
            "proved": pytest.approx(2 / 3),
        }

    def test_the_first_of_several_wins_a_vote(self):
        assert majority(["a", "b", None, "b", "a"], same_string) == "a"
        assert majority([None], same_string) is None


def test_the_prover_is_a_reward():
    class Dead:
        language = "coq"

        def check(self, statement, script):
            raise ProverDied("gone")

        def close(self):
            pass

    task = pt.Task("a", (pt.user("?"),), LINEAR)
    group = [
        pt.Rollout(task, [pt.Turn(pt.Ask(task.prompt), pt.Reply(text, torch.zeros(1), None))])
        for text in ("exists 7. lia.", "exists 8. lia.", "Admitted.", "")
    ]
    reward = proved(prover_of("z3"), lambda task: task.truth, lambda rollout: rollout.text or None)
    assert [score.value for score in reward(group)] == [1.0, 0.0, 0.0, 0.0]
    dead = proved(CachedProver(Dead()), lambda task: task.truth, lambda rollout: rollout.text)
    assert dead(group)[0] == pt.Invalid("gone")


def test_solve_and_resume(tmp_path, capsys):
    data = tmp_path / "p.jsonl"
    data.write_text(json.dumps({"question": "What is 3 + 4?", "answer": "7"}))
    words = ["run", "nl-fl-hybrid", "--stage", "solve", "--data", str(data), "--samples", "2", "--formal", "1"]
    words += ["--language", "coq", "--prover", "z3", "--max-new", "8", "--quiet", "--out", str(tmp_path / "out")]
    main(words)
    assert "hybrid pass@2" in capsys.readouterr().out
    assert json.loads((tmp_path / "out" / "measures.json").read_text())["dropped"]["problems"] == 1
    main([*words, "--resume"])
    with pytest.raises(SystemExit):
        main([*words[:-1], str(tmp_path / "b"), "--language", "lean4"])
    assert "reads coq: give --language coq" in capsys.readouterr().err


WHOLE: list[dict] = [
    {"problem": "1+1?", "answer": "2", "unique_id": "a", "statement": "1 = 1"},
    {"informal_prefix": "/-- 1? Show that it is 1.-/", "formal_statement": "theorem a : 1 = 1 := by", "name": "a"},
]


@given(broken_rows(*WHOLE))
@settings(deadline=None)
def test_whatever_a_row_holds_it_is_read_or_refused_by_its_place(row):
    place = Place("rows.jsonl", 3)
    message = refusal(problem, row, place)
    assert message is None or str(place) in message
