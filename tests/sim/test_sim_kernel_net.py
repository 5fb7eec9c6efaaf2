"""The simulated network and its sessions: when does what is sent arrive, who reaches whom, who is up when."""

from __future__ import annotations

import math
from itertools import islice

import pytest

from sim.churn import read_trace, sessions
from sim.errors import WorldInvalid
from sim.kernel import MILLISECOND, SECOND, Kernel
from sim.net import Nat, Network, RegionLatency, UniformLatency, load_matrix, load_regions
from sim.net.latency import MatrixLatency, pair_uniform
from sim.net.nat import PUNCHED, Reach, reach
from sim.rng import stream
from sim.scenario import ChurnSpec


def _network(
    count: int = 2, *, latency_ms: tuple[float, float] = (10.0, 10.0), **link: float
) -> tuple[Kernel, Network]:
    kernel = Kernel(1)
    network = Network(kernel, UniformLatency(*latency_ms))
    for number in range(count):
        network.add(stream(1, "key", number).u64(), **link)
    return kernel, network


def test_a_message_arrives_after_the_latency_of_its_pair():
    kernel, network = _network()
    seen = []
    assert network.send(0, 1, 100, lambda: seen.append(kernel.now - kernel.start_ns))
    kernel.run(kernel.now + SECOND)
    assert seen == [10 * MILLISECOND]


def test_pairs_have_latencies_of_their_own_that_are_uniform_symmetric_and_stay():
    _, network = _network(400, latency_ms=(10.0, 150.0))
    drawn = [network.latency_ns(a, b) for a in range(0, 400, 2) for b in range(1, 100, 2)]
    assert drawn == [network.latency_ns(b, a) for a in range(0, 400, 2) for b in range(1, 100, 2)]
    assert min(drawn) >= 10 * MILLISECOND
    assert max(drawn) < 150 * MILLISECOND
    for share in (0.1, 0.5, 0.9):
        expected = (10 + 140 * share) * MILLISECOND
        assert sorted(drawn)[int(share * len(drawn))] == pytest.approx(expected, rel=0.05)


def test_latencies_of_a_triangle_do_not_follow_from_each_other():
    """Keys are combined by exclusive or: without mixing, two sides would determine the third."""
    keys = [stream(9, "key", number).u64() for number in range(3000)]
    small = [
        pair_uniform(a, c)
        for a, b, c in zip(keys, keys[1:], keys[2:], strict=False)
        if pair_uniform(a, b) < 0.2 and pair_uniform(b, c) < 0.2
    ]
    assert len(small) > 80
    assert 0.35 < sum(small) / len(small) < 0.65


def test_jitter_is_a_share_of_the_latency_on_top_and_never_reorders_a_stream():
    kernel, network = _network()
    network.jitter = 0.5
    seen = []
    for number in range(200):
        kernel.at(
            kernel.start_ns + number, lambda n=number: network.send(0, 1, 1, lambda: seen.append((n, kernel.now)))
        )
    kernel.run(kernel.now + SECOND)
    assert [number for number, _ in seen] == list(range(200))
    delays = [at - kernel.start_ns for _, at in seen]
    assert min(delays) >= 10 * MILLISECOND
    assert max(delays) <= 15 * MILLISECOND + 200
    assert len(set(delays)) > 3


def test_another_nodes_traffic_changes_nobodys_jitter():
    def delays(noise: bool) -> list[int]:
        kernel, network = _network(3)
        network.jitter, seen = 0.5, []
        for _ in range(50):
            if noise:
                network.send(2, 1, 1, lambda: None)
            network.send(0, 1, 1, lambda: seen.append(kernel.now))
        kernel.run(kernel.now + SECOND)
        return seen

    assert delays(noise=True) == delays(noise=False)


def test_an_uplink_sends_one_message_after_the_other_over_all_connections():
    kernel, network = _network(3, up_bytes_per_s=1_000_000.0)  # 1 ms per 1,000 bytes
    seen = []
    for target in (1, 2, 1, 2):
        network.send(0, target, 1000, lambda: seen.append(round((kernel.now - kernel.start_ns) / MILLISECOND, 3)))
    kernel.run(kernel.now + SECOND)
    assert seen == [11.0, 12.0, 13.0, 14.0]


def test_a_downlink_takes_one_message_after_the_other_from_all_senders():
    kernel, network = _network(5, down_bytes_per_s=1_000_000.0)
    seen = []
    for source in (1, 2, 3, 4):
        network.send(source, 0, 1000, lambda: seen.append(round((kernel.now - kernel.start_ns) / MILLISECOND, 3)))
    kernel.run(kernel.now + SECOND)
    assert seen == [11.0, 12.0, 13.0, 14.0]


def test_a_full_queue_drops_and_counts_what_it_drops():
    kernel, network = _network(2, up_bytes_per_s=1_000_000.0, queue_bytes=3000)
    sent = [network.send(0, 1, 1000, lambda: None) for _ in range(10)]
    assert sent == [True] * 4 + [False] * 6  # one in transmission, three waiting
    assert network.overflowed == 6
    kernel.run(kernel.now + SECOND)
    assert network.send(0, 1, 1000, lambda: None)


def test_loss_takes_its_share():
    _, network = _network()
    network.loss = 0.2
    arrived = sum(network.send(0, 1, 1, lambda: None) for _ in range(10_000))
    assert 7_850 < arrived < 8_150
    assert network.lost == 10_000 - arrived


def test_nothing_crosses_a_partition_until_it_heals():
    _, network = _network(4)
    parted = network.partition([0, 1])
    assert network.send(0, 1, 1, lambda: None)
    assert network.send(2, 3, 1, lambda: None)
    assert not network.send(1, 2, 1, lambda: None)
    assert not network.can_connect(0, 3)
    other = network.partition([0])
    network.heal(parted)
    assert not network.send(0, 1, 1, lambda: None)
    network.heal(other)
    assert network.send(1, 2, 1, lambda: None)


def test_hidden_nodes_meet_through_a_relay_or_a_hole_and_not_at_all_without_one():
    pairs = [(stream(1, "a", n).u64(), stream(1, "b", n).u64()) for n in range(2000)]
    direct = sum(reach(Nat.CONE, Nat.CONE, key_dialer=a, key_listener=b) is Reach.DIRECT for a, b in pairs)
    assert direct / len(pairs) == pytest.approx(PUNCHED, abs=0.03)
    assert all(reach(Nat.SYMMETRIC, Nat.CONE, key_dialer=a, key_listener=b) is Reach.RELAYED for a, b in pairs)
    assert all(reach(Nat.PUBLIC, Nat.SYMMETRIC, key_dialer=a, key_listener=b) is Reach.DIRECT for a, b in pairs)
    network = Network(Kernel(1), UniformLatency(10.0, 10.0))
    for _ in range(2):
        network.add(stream(1, "key", len(network._keys)).u64(), nat=Nat.SYMMETRIC)
    assert not network.can_connect(0, 1)
    with pytest.raises(LookupError):
        network.latency_ns(0, 1)
    network.add(stream(1, "key", 2).u64())
    assert network.can_connect(0, 1)
    assert network.latency_ns(0, 1) == 20 * MILLISECOND
    assert network.latency_ns(0, 2) == 10 * MILLISECOND


def test_the_region_sets_have_sources_weights_and_whole_matrices():
    for name, count, europe in (("regions8", 8, 0.494), ("simblock6", 6, 0.516)):
        regions = load_regions(name)
        assert "Source:" in regions.source
        assert len(regions.regions) == len(regions.latency_ns) == count
        share = regions.weights[regions.index("europe")] / sum(regions.weights)
        assert share == pytest.approx(europe, abs=0.001)
    with pytest.raises(WorldInvalid, match="australia"):
        regions.index("atlantis")


def test_nodes_are_spread_over_regions_by_weight_or_put_where_the_scenario_says():
    latency = RegionLatency(load_regions("regions8"))
    for number in range(4000):
        latency.add(stream(2, "key", number).u64(), "")
    share = latency.region_of.count(latency.regions.index("europe")) / 4000
    assert share == pytest.approx(0.494, abs=0.03)
    latency.add(1, "australia")
    latency.add(2, "south_america")
    assert latency.between(4000, 4001) == 190 * MILLISECOND


def test_a_matrix_of_measured_latencies_is_read_and_a_wrong_one_is_refused_by_name(tmp_path):
    file = tmp_path / "hosts.csv"
    file.write_text("# three hosts\n0,10,20\n10,0,30\n20,30,1\n")
    latency = MatrixLatency(load_matrix(file))
    for number in range(5):
        latency.add(number, "")
    assert latency.between(1, 2) == 30 * MILLISECOND
    assert latency.between(2, 0) == 20 * MILLISECOND
    for text, complaint in (("0,1\n", "latencies"), ("0,x\n1,0\n", "no number"), ("", "empty"), ("-1\n", "between")):
        file.write_text(text)
        with pytest.raises(WorldInvalid, match=complaint):
            load_matrix(file)
    with pytest.raises(WorldInvalid, match=r"absent\.csv"):
        load_matrix(tmp_path / "absent.csv")


# --- churn -----------------------------------------------------------------------------------------------


def test_sessions_have_the_published_quantiles_of_ipfs_peers():
    """RFM2: half of the sessions end within two hours, four in five within eight."""
    spec = ChurnSpec(model="weibull")
    lengths = []
    for number in range(400):
        started = islice(sessions(spec, stream(5, "churn", number), index=number), 1, 26)  # the first was met half-way
        lengths += [down - up for up, down in started]
    lengths.sort()
    assert lengths[len(lengths) // 2] / 3600 == pytest.approx(2.0, rel=0.06)
    assert lengths[len(lengths) * 4 // 5] / 3600 == pytest.approx(8.0, rel=0.06)


def test_the_population_is_in_its_steady_state_from_the_first_instant():
    spec = ChurnSpec(model="weibull", off_mean_s=3600.0 * 4)
    mean_up = spec.scale_s * math.gamma(1 + 1 / spec.shape)
    expected = mean_up / (mean_up + spec.off_mean_s)
    everybody = [list(islice(sessions(spec, stream(6, "churn", n), index=n), 60)) for n in range(1500)]

    def share_up(at_s: float) -> float:
        return sum(any(up <= at_s < down for up, down in own) for own in everybody) / len(everybody)

    for at_s in (0.0, 600.0, 7200.0, 40_000.0):
        assert share_up(at_s) == pytest.approx(expected, abs=0.045)


def test_sessions_follow_a_trace_file_and_a_wrong_line_is_named(tmp_path):
    file = tmp_path / "trace.csv"
    file.write_text("node,up_s,down_s\n0,0,10\n1,5,7\n0,20,30\n")
    trace = read_trace(file)
    spec = ChurnSpec(model="trace", file="trace.csv")
    assert list(sessions(spec, stream(1, "churn"), index=0, trace=trace)) == [(0.0, 10.0), (20.0, 30.0)]
    assert list(sessions(spec, stream(1, "churn"), index=2, trace=trace)) == []
    file.write_text("0,0,10\n0,5,7\n")
    with pytest.raises(WorldInvalid, match=r"trace\.csv:2"):
        read_trace(file)


def test_a_flash_crowd_comes_within_its_seconds_and_leaves_again():
    spec = ChurnSpec(model="flash", share=0.5, at_s=100.0, within_s=10.0, stay_s=60.0)
    everybody = [next(sessions(spec, stream(3, "churn", n), index=n)) for n in range(1000)]
    crowd = [own for own in everybody if own[0] > 0]
    assert 430 < len(crowd) < 570
    assert all(100 <= up <= 110 and down == up + 60 for up, down in crowd)


def test_diurnal_nodes_are_up_by_day_only():
    spec = ChurnSpec(model="diurnal", amplitude=1.0)
    everybody = [list(islice(sessions(spec, stream(3, "churn", n), index=n), 4)) for n in range(300)]

    def share_up(at_s: float) -> float:
        return sum(any(up <= at_s < down for up, down in own) for own in everybody) / len(everybody)

    assert share_up(12 * 3600) == 1.0
    assert share_up(24 * 3600) == 0.0
    assert share_up(36 * 3600) == 1.0
