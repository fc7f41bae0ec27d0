"""Graphs of agents, the policies that draw them, their execution, and what they earn."""

from __future__ import annotations

import itertools
import json

import pytest
import torch
from chat_server import chat_server
from hypothesis import given, settings
from hypothesis import strategies as st

import posttrain as pt
from posttrain.cli import main
from posttrain.lab.world.crew import LEARNERS, LIAR, MASTERS, OUTPUTS, PASS, WORDS, Crew, features, read, untrained
from posttrain.systems.topology_mas import recipe
from posttrain.systems.topology_mas.baselines import Designer, EdgeLayout, EdgeLogits, Pruning
from posttrain.systems.topology_mas.execution import Agent, Execution, Query, Team, execution, with_graph
from posttrain.systems.topology_mas.graph import STRUCTURES, Graph, named_graph
from posttrain.systems.topology_mas.lab import EMBEDDER, crew
from posttrain.systems.topology_mas.network import GraphChoices, Layout
from posttrain.systems.topology_mas.pool import PoolOptions, agents, vote, with_profiles
from posttrain.systems.topology_mas.reward import Costs, accuracy, utility

QUERY = 3


def randomised(network):
    """With weights that prefer some options to others."""
    torch.manual_seed(1)
    with torch.no_grad():
        for value in [*network.parameters(), *(b for name, b in network.named_buffers() if name == "profiles")]:
            value.copy_(torch.randn(value.shape) * 0.7)
    return network


NETWORKS = {
    "ours": lambda: GraphChoices(4, 5, QUERY, hidden=8),
    "two rounds": lambda: GraphChoices(3, 5, QUERY, hidden=8, rounds=2),
    "without selection": lambda: GraphChoices(4, 5, QUERY, hidden=8, selection=False),
    "without structure": lambda: GraphChoices(4, 5, QUERY, hidden=8, structure=False),
    "without edges": lambda: GraphChoices(4, 5, QUERY, hidden=8, edges=False),
    "GPTSwarm": lambda: EdgeLogits(4, decisions=True),
    "AgentPrune": lambda: EdgeLogits(3, rounds=2),
    "G-Designer": lambda: Designer(4, 5, QUERY, hidden=8, width=4),
    "G-Designer, not scaled": lambda: Designer(4, 5, QUERY, hidden=8, width=4, scaled=False),
}


def shown(i: int) -> pt.Task:
    return pt.Task(f"q{i}", (pt.show(query=[i / 3, 1.0, -i / 5]),), i)


# ---- graphs


@pytest.mark.parametrize(
    ("name", "edges"),
    [
        ("independent", set()),
        ("chain", {(0, 1), (1, 2), (2, 3), (3, 4)}),
        ("star", {(0, 4), (1, 4), (2, 4), (3, 4)}),
        ("tree", {(3, 4), (2, 4), (1, 3), (0, 3)}),
        ("layered", {(i, j) for i in (0, 1, 2) for j in (3, 4)}),
        ("full", set(itertools.combinations(range(5), 2))),
    ],
)
def test_the_structures_with_a_name(name, edges):
    assert STRUCTURES[name](5) == edges


@given(st.permutations(range(7)), st.integers(1, 7), st.sampled_from(list(STRUCTURES)), st.integers(1, 3))
@settings(max_examples=60, deadline=None)
def test_a_fixed_structure_is_acyclic_over_any_agents(order, count, name, rounds):
    graph = named_graph(name, order[:count], rounds)
    assert [agent for level in graph.levels for agent in level if agent not in order[:count]] == []
    assert sorted(itertools.chain(*graph.levels)) == sorted(order[:count])
    depth = {agent: d for d, level in enumerate(graph.levels) for agent in level}
    assert all(depth[i] < depth[j] for i, j in graph.spatial)
    assert graph.sinks


def test_levels_sinks_and_deciders():
    graph = Graph((2, 0, 1, 3), frozenset({(2, 0), (2, 1), (0, 3)}))
    assert graph.levels == [[2], [0, 1], [3]]
    assert graph.deciders == graph.sinks == (1, 3)
    assert Graph((0, 1), deciding=(1,)).deciders == (1,)
    assert named_graph("chain", (4, 2), rounds=2).temporal == {(4, 4), (2, 2), (2, 4)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 1), frozenset({(1, 0)})), r"\[\(1, 0\)\] lead backward"),
        (((0, 1), frozenset({(0, 2)})), r"agents \[2\] take no part"),
        (((0, 0),), "takes part twice"),
        (((0,), frozenset({(0, 0)})), "lead backward"),
    ],
)
def test_a_graph_that_cannot_be_executed_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Graph(*arguments)


# ---- policies over graphs


@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_passes_the_checks_of_a_policy(name):
    pt.check_policy(pt.DecisionPolicy(randomised(NETWORKS[name]())), [shown(i) for i in range(4)], tolerance=1e-5)


@given(seed=st.integers(0, 2**63 - 1), name=st.sampled_from(list(NETWORKS)), heat=st.sampled_from([0.0, 1.0, 4.0]))
@settings(max_examples=80, deadline=None)
def test_whatever_is_drawn_is_an_acyclic_graph_with_somebody_in_it(seed, name, heat):
    network = randomised(NETWORKS[name]())
    [reply] = pt.DecisionPolicy(network).sample([pt.Ask(shown(2).prompt, seed=seed, temperature=heat)])
    graph = network.layout.graph(reply.content)  # Graph refuses a cycle
    assert graph.agents
    if name == "without selection" or not isinstance(network, GraphChoices):
        assert len(graph.agents) == network.layout.agents


def test_the_probabilities_of_all_graphs_of_two_agents_add_up_to_one():
    """All replies: their probabilities add up to 1, and every one is another sequence of choices."""
    network = randomised(GraphChoices(2, 5, QUERY, hidden=8))
    policy = pt.DecisionPolicy(network)
    replies = policy.sample([pt.Ask(shown(1).prompt, seed=pt.mix(3, i)) for i in range(6000)])
    chance = {reply.content: reply.logp.sum().exp().item() for reply in replies}
    assert sum(chance.values()) == pytest.approx(1, abs=0.02)
    assert {network.layout.graph(content).edges for content in chance} == {0, 1}


def test_ablations_leave_their_stage_out():
    def graphs(**options):
        network = randomised(GraphChoices(4, 5, QUERY, hidden=8, **options))
        replies = pt.DecisionPolicy(network).sample([pt.Ask(shown(1).prompt, seed=i) for i in range(40)])
        return [(reply.content, network.layout.graph(reply.content)) for reply in replies]

    assert {len(graph.agents) for _, graph in graphs(selection=False)} == {4}
    assert {content[4] for content, _ in graphs(structure=False)} == {list(STRUCTURES).index("full")}
    for content, graph in graphs(edges=False):
        wanted = STRUCTURES[list(STRUCTURES)[content[4]]](len(graph.agents))
        assert graph.spatial == {(graph.agents[a], graph.agents[b]) for a, b in wanted}


def test_what_is_of_no_consequence_is_no_decision():
    """A lone agent: two choices of selection, the structure, and no more; the last must take part if no other does."""
    network = GraphChoices(2, 5, QUERY)
    by_agents = {}
    for reply in pt.DecisionPolicy(network).sample([pt.Ask(shown(0).prompt, seed=i) for i in range(60)]):
        by_agents.setdefault(reply.content[:2], set()).add(len(reply.logp))
    assert by_agents[(0, 1)] == {2}  # the second is forced
    assert by_agents[(1, 0)] == {3}
    assert by_agents[(1, 1)] == {3, 5}  # independent: no order and no edge; else the first of two, and their edge


def test_the_layout_of_a_graph():
    selection, tau, order, edges = (1, 0, 1), (1,), (2, 0, 1), (1, 0, 0)
    graph = Layout(3).graph((*selection, *tau, *order, *edges))
    assert (graph.agents, graph.spatial) == ((2, 0), {(2, 0)})
    assert EdgeLayout(3, decisions=True).graph((0, 0, 1, 0, 0, 1, 0, 1, 0)) == Graph(
        (2, 1, 0), frozenset({(1, 0), (2, 1)}), deciding=(1,)
    )


def test_an_edge_that_would_close_a_cycle_is_skipped():
    network = EdgeLogits(3)
    with torch.no_grad():
        network.own.fill_(9.0)
    [reply] = pt.DecisionPolicy(network).sample([pt.Ask(shown(0).prompt, temperature=0.0)])
    assert network.layout.graph(reply.content).spatial == {(0, 1), (0, 2), (1, 2)}  # in the fixed order
    assert len(reply.logp) == 3


def test_pruning_closes_the_lowest_quarter_of_either_kind_every_few_steps():
    network = EdgeLogits(3, rounds=2)  # 6 spatial and 9 temporal edges
    with torch.no_grad():
        network.own.copy_(torch.arange(15.0))
    pruning = Pruning(network, every=2)
    assert [pruning.learn()["edges_left"] for _ in range(4)] == [15, 11, 11, 8]  # 2 and 2 of them; then 1 and 2
    assert network.mask.nonzero().flatten().tolist() == [3, 4, 5, 10, 11, 12, 13, 14]
    assert pruning.state_dict() == {"steps": 4}
    pt.check_policy(pt.DecisionPolicy(network), [shown(0), shown(1)])


def test_the_edges_of_the_designer_are_symmetric_and_scaled():
    logits = randomised(Designer(4, 5, QUERY)).wishes([{"query": [0.1, 0.2, 0.3]}, {"query": [1.0, 0.0, 3.0]}])
    pairs = EdgeLayout(4).spatial
    torch.testing.assert_close(logits, logits[:, [pairs.index((j, i)) for i, j in pairs]])
    assert logits.amin(-1).tolist() == pytest.approx([-1, -1])
    assert logits.amax(-1).tolist() == pytest.approx([1, 1])


@pytest.mark.parametrize("name", ["ours", "GPTSwarm", "G-Designer"])
def test_a_policy_over_graphs_is_saved_and_loaded(name, tmp_path):
    policy = pt.DecisionPolicy(randomised(NETWORKS[name]()))
    policy.save(tmp_path)
    twin = pt.DecisionPolicy(pt.load_network(tmp_path, GraphChoices, EdgeLogits, Designer))
    asks = [pt.Ask(shown(i).prompt, seed=i) for i in range(5)]
    assert [r.content for r in twin.sample(asks)] == [r.content for r in policy.sample(asks)]


@pytest.mark.parametrize("name", ["ours", "G-Designer"])
def test_a_query_of_another_width_is_refused(name):
    policy = pt.DecisionPolicy(NETWORKS[name]())
    with pytest.raises(ValueError, match=r"task 'a': `query` is shown as \[2\]; the network reads \[3\]"):
        policy.check([pt.Task("a", (pt.show(query=[0.0, 1.0]),), None)])


# ---- execution


TEAM = Team([Agent(name, f"you are {name}", "m") for name in "abcd"])
TASK = pt.Task("t", (pt.show("how?", query=[0.0]),), Query((pt.user("how?"),), "1"))


def drive(env, answers, task=TASK):
    """The facts of an episode, and the prompts of each batch of asks; `answers` are of agents, call by call."""
    episode, answers, batches = env(task), iter(answers), []
    try:
        asks = next(episode)
        while True:
            batches.append([(ask.who, [message["content"] for message in ask.messages]) for ask in asks])
            asks = episode.send([pt.Reply(next(answers), torch.zeros(0), None) for _ in asks])
    except StopIteration as over:
        return over.value, batches


def test_agents_of_a_level_are_asked_together_and_hear_those_they_read():
    graph = Graph((0, 1, 2), frozenset({(0, 2), (1, 2)}))
    facts, batches = drive(with_graph(TEAM, graph), ["one", "two", "three four"])
    assert batches == [
        [("m", ["you are a", "how?"]), ("m", ["you are b", "how?"])],
        [("m", ["you are c", "how?\n\nThe other agents say:\n[a] one\n[b] two"])],
    ]
    assert (facts.answer, facts.outputs) == ("three four", ((0, "one"), (1, "two"), (2, "three four")))
    assert (facts.tokens_in, facts.tokens_out) == (3 * 4 + 4 + 4, 4)


def test_temporal_edges_carry_the_outputs_of_the_round_before():
    graph = Graph((0, 1), frozenset({(0, 1)}), frozenset({(1, 0), (1, 1)}), rounds=2)
    facts, batches = drive(with_graph(TEAM, graph), ["a1", "b1", "a2", "b2"])
    before = "In the round before, the agents said:"
    assert batches[2] == [("m", ["you are a", f"how?\n\n{before}\n[b] b1"])]
    assert batches[3] == [("m", ["you are b", f"how?\n\n{before}\n[you] b1\n\nThe other agents say:\n[a] a2"])]
    assert facts.answer == "b2"


def test_the_policy_decides_before_the_agents_speak():
    layout = Layout(2)
    env = execution(TEAM, layout.graph)
    facts, batches = drive(env, [(1, 1, 1, 1, 0, 1), "x", "y"])  # a chain of b, a
    assert [len(batch) for batch in batches] == [1, 1, 1]
    assert batches[0][0][0] == "policy"
    assert facts.graph == Graph((1, 0), frozenset({(1, 0)}))
    assert facts.outputs == ((1, "x"), (0, "y"))


@pytest.mark.parametrize(
    ("rule", "said", "answer"),
    [
        ("vote", ["x", "y", "y"], "y"),
        ("vote", ["x", "y", "z"], "x"),
        ("vote", ["", "", "z"], "z"),
        ("vote", ["", "", ""], ""),
        ("last", ["y", "y", "x"], "x"),
        ("refer", ["x", "y", "y", "w"], "w"),
    ],
)
def test_rules_of_decision(rule, said, answer):
    team = Team(TEAM.agents, rule, answer=lambda text: text or None)
    facts, batches = drive(with_graph(team, Graph((0, 1, 2))), said)
    assert facts.answer == answer
    if rule == "refer":
        assert batches[-1][0][0] == "agents"
        assert batches[-1][0][1][-1] == "how?\n\nThe other agents say:\n[a] x\n[b] y\n[c] y"


@given(st.integers(0, 2**63 - 1), st.lists(st.text(max_size=8), min_size=1, max_size=5))
@settings(max_examples=30, deadline=None)
def test_no_output_breaks_an_execution(seed, said):
    network = NETWORKS["two rounds"]()
    [reply] = pt.DecisionPolicy(network).sample([pt.Ask(shown(1).prompt, seed=seed)])
    facts, _ = drive(with_graph(TEAM, network.layout.graph(reply.content)), itertools.cycle(said))
    assert facts.tokens >= 0
    assert accuracy(pt.grade.exact)([pt.Rollout(TASK, [], facts)])[0].value in (0, 1)


def test_a_dead_server_fails_the_episode_and_is_not_graded():
    class Down:
        def sample(self, asks):
            return [pt.Reply(pt.Failure("no server"), torch.zeros(0), None) for _ in asks]

    [one] = pt.play([TASK], with_graph(TEAM, Graph((0,))), {"m": Down()})
    assert one.facts == pt.Failure("EpisodeFailed: no server")


# ---- reward


def ended(answer: str, graph: Graph, tokens: int = 0) -> pt.Rollout:
    return pt.Rollout(TASK, [], Execution(graph, answer, (), tokens, 0, 0))


def test_the_utility_is_correctness_less_costs():
    graph = Graph((0, 1, 2), frozenset({(0, 1), (1, 2)}))
    paid = utility(pt.grade.exact, Costs(edge_cost=0.01, agent_cost=0.1, token_cost=0.001))
    right, wrong = paid([ended("1", graph, 50), ended("2", graph)])
    assert right.value == pytest.approx(1 - 0.02 - 0.3 - 0.05)
    assert wrong.value == pytest.approx(-0.02 - 0.3)
    assert right.parts == {"correct": 1, "edges": 2, "agents": 3, "tokens": 50, "adversaries": 0}
    assert accuracy(pt.grade.exact)([ended("1", graph, 50)])[0].value == 1
    ungradable = utility(pt.each(lambda one: pt.Invalid("broken")))([ended("1", graph)])
    assert ungradable == [pt.Invalid("broken")]
    with pytest.raises(ValueError, match="`agent_cost=-1`: it must be at least 0"):
        Costs(agent_cost=-1)


# ---- the world


def test_the_speaker_says_what_each_role_says():
    """Means over all questions of a kind: a master, a learner, what all know, relays, passes and liars."""
    world = Crew(100)
    player = untrained(world)
    player.learn(world)

    def chance(kind, role, heard, wanted) -> float:
        """How probable the wanted reply is, where role, message and reply follow from the question."""
        every = [one for one in world.every_question if one.kind == kind]
        shown = [features((*role(one).split(), *one.prompt.split()), heard(one)) for one in every]
        with torch.no_grad():
            found = player.network(torch.stack(shown)).softmax(-1)
        return found[range(len(every)), [OUTPUTS.index(wanted(one)) for one in every]].mean().item()

    def silence(_) -> str:
        return PASS

    right = world.answer
    assert chance("single", lambda one: MASTERS[one.first], lambda one: "x3", right) > 0.8
    assert 0.5 < chance("single", lambda one: LEARNERS[one.first], silence, right) < 0.8
    after_the_first = lambda one: f"x{world.skills[one.first][one.symbol]}"  # noqa: E731
    assert chance("compose", lambda one: MASTERS[one.then], after_the_first, right) > 0.8
    assert 0.4 < chance("common", lambda one: MASTERS[0], silence, right) < 0.7
    assert chance("common", lambda one: MASTERS[0], lambda one: "x5", lambda one: "x5") > 0.9
    stranger = lambda one: MASTERS[(one.first + 1) % len(MASTERS)]  # noqa: E731
    assert chance("single", stranger, silence, silence) > 0.9
    lie = lambda one: f"x{world.skills[-1][one.symbol]}"  # noqa: E731
    assert chance("single", lambda one: LIAR, silence, lie) > 0.9


def test_the_speaker_reads_the_last_message_that_says_something():
    team = crew(Crew(0))
    query = Query((pt.user("common x7"),), "")
    prompt = team.messages(team.agents[1], query, ["[a0] x2", "[a3] pass"], ["[you] x1"])
    assert prompt[1]["content"] == "common x7 before\n[you] x1 others\n[a0] x2\n[a3] pass"
    assert read(pt.Ask(tuple(prompt))) == (("skill-1", "master", "common", "x7"), "x2")
    assert read(pt.Ask(tuple(team.messages(team.agents[1], query, [], [])))) == (
        ("skill-1", "master", "common", "x7"),
        PASS,
    )


def test_no_two_words_of_the_world_share_a_place():
    found = EMBEDDER.embed([*WORDS, *Crew(0).names])
    assert len({int(row.argmax()) for row in found}) == len(found)


def test_adversaries_count_when_somebody_hears_them():
    team = Team([Agent("a", "r", "m"), Agent("b", "r", "m", adversary=True)])
    for graph, count in (
        (Graph((0, 1)), 1),  # it votes
        (Graph((1, 0), frozenset({(1, 0)})), 1),  # it is read
        (Graph((0, 1), deciding=(0,)), 0),
    ):
        assert drive(with_graph(team, graph), ["x", "y"])[0].adversaries == count


# ---- pools and stages


def test_a_pool_is_read_with_its_lines(tmp_path):
    def pool(*lines):
        (tmp_path / "agents.jsonl").write_text("\n".join(map(json.dumps, lines)))
        return agents(str(tmp_path / "agents.jsonl"))

    one = {"name": "a", "role": "r", "model": "m"}
    assert pool(one, {**one, "name": "b", "adversary": True}) == [Agent("a", "r", "m"), Agent("b", "r", "m", True)]
    for lines, message in (
        ([one, one], "line 2: there are two agents named 'a'"),
        ([{**one, "tools": []}], "line 1: 'tools' is nothing that an agent has"),
        ([{**one, "adversary": "maybe"}], "line 1: `adversary` is 'maybe'"),
        ([{"name": "a", "model": "m"}], "line 1: there is no column 'role'"),
    ):
        with pytest.raises(ValueError, match=message):
            pool(*lines)
    pool({**one, "name": "referee"}, one)
    with pytest.raises(ValueError, match="needs two agents at least"):
        PoolOptions(str(tmp_path / "agents.jsonl")).team()


def test_votes_are_on_stated_answers():
    assert vote("So it is 4.\n#### 4") == vote("The answer is 4") == "4"
    assert vote("  Paris ") == vote("paris") == "paris"
    assert vote(" ") is None


def test_options_that_do_not_go_together_are_refused(tmp_path, capsys):
    data, pool = tmp_path / "data.jsonl", tmp_path / "agents.json"
    data.write_text(json.dumps({"prompt": "1+1?", "answer": "2"}))
    pool.write_text(json.dumps([{"name": name, "role": name, "model": "none"} for name in "ab"]))
    given = ["--agents", str(pool), "--data", str(data), "--encoder", "hashed:8", "--out", str(tmp_path / "out")]
    for stage, options, message in (
        (
            "train",
            ["--method", "agentprune"],
            "--rounds 1: agentprune prunes edges between rounds too; give --rounds 2",
        ),
        ("train", ["--method", "g-designer", "--rounds", "2"], "g-designer has one round"),
        ("train", ["--method", "gptswarm", "--no-edges"], "gptswarm has no such stage"),
        ("evaluate", [], "give either a trained --policy or a --structure"),
        ("evaluate", ["--structure", "ring"], "--structure ring: unknown"),
        ("evaluate", ["--policy", str(tmp_path / "nothing")], "holds no policy that decides"),
    ):
        with pytest.raises(SystemExit):
            main(["run", "topology-mas", "--stage", stage, *given, *options])
        assert message in " ".join(capsys.readouterr().err.split())


def crowd(messages):
    """Solves when it is told to, and says something else when not."""
    return "The answer is 2" if "solve" in messages[0]["content"] else "The answer is 3"


def test_agents_behind_a_server_from_training_to_evaluation(tmp_path, capsys):
    pool, data = tmp_path / "agents.json", tmp_path / "data.jsonl"
    roles = {"solver": "You solve it.", "liar": "You say what is wrong."}
    data.write_text("\n".join(json.dumps({"prompt": f"{i} is 1+1?", "answer": "2"}) for i in range(3)))
    given = ["--agents", str(pool), "--data", str(data), "--encoder", "hashed:16", "--quiet"]

    def stage(name, out, *options):
        main(["run", "topology-mas", "--stage", name, *given, "--out", str(tmp_path / out), *options])

    with chat_server(crowd) as url:
        pool.write_text(json.dumps([{"name": name, "role": role, "model": url} for name, role in roles.items()]))
        stage(
            "train", "run", "--steps", "2", "--tasks", "2", "--samples", "4", "--hidden", "8", "--held-out", str(data)
        )
        stage("evaluate", "learned", "--policy", str(tmp_path / "run" / "model"))
        stage("evaluate", "chain", "--structure", "chain")
        stage("evaluate", "chain", "--structure", "chain", "--resume")
    metrics = pt.read_metrics(tmp_path / "run")[0]
    assert {"part/correct", "part/edges", "part/agents", "part/tokens"} <= set(metrics)
    found = pt.read_json(tmp_path / "chain" / "measures.json")
    assert (found["correct"], found["edges"], found["agents"], found["questions"]) == (0, 1, 2, 3)  # the liar is last
    first = json.loads((tmp_path / "chain" / "answers.jsonl").read_text().splitlines()[0])
    assert (first["agents"], first["spatial"]) == (["solver", "liar"], [["solver", "liar"]])
    assert pt.read_json(tmp_path / "learned" / "measures.json")["questions"] == 3
    assert "correct" in capsys.readouterr().out


# ---- learning


@pytest.mark.slow
def test_the_policy_learns_whom_to_take():
    """Two agents, of which one is right on either kind of query: after 60 steps the right one answers alone."""

    class Half:
        def sample(self, asks):
            right = [str(ask.messages[0]["content"]) == str(ask.messages[1]["content"]) for ask in asks]
            return [pt.Reply("1" if one else "0", torch.zeros(0), None) for one in right]

    team = Team([Agent(name, name, "m") for name in "ab"])
    vectors = {"a": [1.0, 0.0], "b": [0.0, 1.0]}
    tasks = [pt.Task(k, (pt.show(query=vectors[k]),), Query((pt.user(k),), "1")) for k in "ab"]
    torch.manual_seed(0)
    network = with_profiles(GraphChoices(2, 2, 2, hidden=16), torch.eye(2))
    env, players = execution(team, network.layout.graph), {"m": Half()}
    made = recipe(utility(pt.grade.exact, Costs(0.05, 0.1)), env, players)
    pt.train_in_memory(pt.DecisionPolicy(network), tasks, made, steps=60, per_step=4, lr=1e-2)
    options = {"samples": 8, "temperature": 0.0}
    found = pt.evaluate(
        {"policy": pt.DecisionPolicy(network), **players}, tasks, accuracy(pt.grade.exact), env, **options
    )
    assert found.reward == 1
    assert found.part("agents") == 1
