"""Collecting evidence with a pretended kernel, dstack agent, NVML and services: what a provider's machine does."""

import base64
import http.server
import json
import socketserver
import threading
import urllib.parse
from dataclasses import replace
from email.utils import formatdate
from pathlib import Path
from types import SimpleNamespace

import pytest
import trio

from cocoon.adapters.tee import configfs
from cocoon.adapters.tee.collateral import BACKOFF_FIRST_S, HOUR_S, CollateralStore, HttpAnswer
from cocoon.adapters.tee.configfs import ConfigfsDevice, TsmFiles, measure
from cocoon.adapters.tee.doctor import examine
from cocoon.adapters.tee.dstack import DstackDevice
from cocoon.adapters.tee.hardware import HardwareEnclave
from cocoon.adapters.tee.nvml import NvmlGpus
from cocoon.adapters.tee.software import FIRMWARE_EVENTS, build_ccel, software_anchors
from cocoon.attest.eventlog import LogKind, read_log
from cocoon.attest.gpu.verify import evidence_digest
from cocoon.attest.quote import read_report
from cocoon.attest.statement import MODE_TDX_GPU
from cocoon.errors import AttestationError, ConfigError, Unavailable
from cocoon.types import Network
from tests.fakes.attestation import INTEL, MODEL, NOW_S, NVIDIA, enclave

REPORT_DATA = bytes(range(64))
MACHINE = enclave()


class PretendedKernel(TsmFiles):
    """configfs-tsm as the kernel does it: every write of inblob moves the generation."""

    def __init__(self, provider=b"tdx_guest\n", interloper=False, padding=70, answer=None):
        self.provider, self.interloper, self.padding, self.answer = provider, interloper, padding, answer
        self.generation, self.inblob, self.rtmr = 4, b"", []

    def read(self, path, bytes_max):
        match path.name:
            case "provider":
                return self.provider
            case "generation":
                return b"%d\n" % self.generation
            case "outblob":
                if self.answer is not None:
                    return self.answer
                return MACHINE.quote(MACHINE.fields(self.inblob)) + bytes(self.padding)
        return super().read(path, bytes_max)

    def write(self, path, data):
        if path.name == "inblob":
            self.inblob = data
            self.generation += 2 if self.interloper else 1
        else:
            self.rtmr.append(data)


def device(tmp_path, **kernel):
    (tmp_path / "report").mkdir(exist_ok=True)
    ccel = tmp_path / "CCEL"
    ccel.write_bytes(build_ccel(FIRMWARE_EVENTS) + b"\xff" * 500)
    return ConfigfsDevice(
        report_root=tmp_path / "report",
        ccel=ccel,
        runtime_log=tmp_path / "runtime.json",
        files=PretendedKernel(**kernel),
    )


def test_the_kernels_quote_comes_without_its_padding(tmp_path):
    quote = device(tmp_path).quote(REPORT_DATA)
    form = read_report(quote)
    assert form.bytes_after == 0
    assert form.report.report_data == REPORT_DATA


@pytest.mark.parametrize(
    ("kernel", "words"),
    [
        ({"provider": b"sev_guest\n"}, "not a TDX guest"),
        ({"interloper": True}, "another process"),
        ({"answer": b""}, "no TDX quote"),
        ({"answer": b"x" * 5000}, "no TDX quote"),
        ({"answer": MACHINE.quote(MACHINE.fields(bytes(64)))}, "another quote"),
    ],
)
def test_a_quote_device_that_misbehaves_is_named(tmp_path, kernel, words):
    with pytest.raises(Unavailable, match=words):
        device(tmp_path, **kernel).quote(REPORT_DATA)


def test_a_machine_without_the_device_says_what_to_do(tmp_path):
    with pytest.raises(Unavailable) as error:
        ConfigfsDevice(report_root=tmp_path / "absent" / "report").quote(REPORT_DATA)
    assert "Linux 6.7" in error.value.advice


def test_the_real_file_operations_write_once_and_lock(tmp_path):
    files = TsmFiles()
    files.ensure_directory(tmp_path / "entry")
    target = tmp_path / "entry" / "inblob"
    target.touch()
    with files.locked(tmp_path / "entry"):
        files.write(target, REPORT_DATA)
    assert files.read(target, 100) == REPORT_DATA


def test_measuring_once_seals_rtmr3_and_a_second_time_is_refused(tmp_path):
    kernel, log = PretendedKernel(), tmp_path / "run" / "events.json"
    things = {"image": MACHINE.image, "config": MACHINE.config, "models": [MODEL]}
    measure(**things, rtmr=tmp_path / "rtmr3", runtime_log=log, files=kernel)
    events = read_log(log.read_bytes(), LogKind.JSON)
    assert [event.name for event in events] == ["cocoon/image", "cocoon/config", "cocoon/model", "cocoon/seal"]
    assert kernel.rtmr == [event.digest for event in events]
    with pytest.raises(Unavailable, match="already"):
        measure(**things, rtmr=tmp_path / "rtmr3", runtime_log=log, files=kernel)
    assert len(kernel.rtmr) == 4
    with pytest.raises(Unavailable, match="cannot be extended"):
        measure(**things, rtmr=tmp_path / "absent", runtime_log=tmp_path / "other.json")


def test_logs_are_trimmed_and_a_missing_one_is_named(tmp_path):
    with pytest.raises(Unavailable, match="event log"):
        device(tmp_path).logs()
    (tmp_path / "runtime.json").write_bytes(MACHINE.logs()[1][1])
    assert device(tmp_path).logs() == MACHINE.logs()


# --- dstack ---


class Agent(http.server.BaseHTTPRequestHandler):
    events: list = []  # noqa: RUF012
    broken = None

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/EmitEvent":
            type(self).events.append((body["event"], body["payload"]))
            answer = b""
        else:
            quote = MACHINE.quote(MACHINE.fields(bytes.fromhex(body["report_data"])))
            answer = json.dumps({"quote": quote.hex(), "event_log": "[]"}).encode()
        if type(self).broken is not None:
            answer = type(self).broken
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def address_string(self):
        return "unix"

    def log_message(self, *_):
        pass


class AgentServer(socketserver.UnixStreamServer):
    pass


@pytest.fixture
def agent(tmp_path):
    handler = type("Handler", (Agent,), {"events": [], "broken": None})
    with AgentServer(str(tmp_path / "dstack.sock"), handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield tmp_path / "dstack.sock", handler
        server.shutdown()
        thread.join()


def test_dstack_gives_quote_and_log_and_measures(agent):
    path, handler = agent
    dstack = DstackDevice(path=path)
    assert read_report(dstack.quote(REPORT_DATA)).report.report_data == REPORT_DATA
    assert dstack.logs() == ((LogKind.JSON, b"[]"),)
    dstack.measure(image=MACHINE.image, config=MACHINE.config, models=[MODEL])
    assert [name for name, _ in handler.events][-1] == "cocoon/seal"


@pytest.mark.parametrize(
    "answer", [b"", b"[]", b"{", b'{"quote":"zz","event_log":"[]"}', b'{"quote":"00"}', b"x" * 600_000]
)
def test_an_agent_that_talks_nonsense_is_an_outage(agent, answer):
    path, handler = agent
    handler.broken = answer
    with pytest.raises(Unavailable):
        DstackDevice(path=path).quote(REPORT_DATA)


def test_no_agent_says_what_to_do(tmp_path):
    with pytest.raises(Unavailable) as error:
        DstackDevice(path=tmp_path / "absent.sock").quote(REPORT_DATA)
    assert "dstack" in error.value.advice


# --- NVML ---


class PretendedNvml:
    """NVML with one simulated H100."""

    class NVMLError(Exception):
        pass

    def __init__(self, *, count=1, environment=2, feature=1, dev_tools=0, supported=True, driver=True, report=True):
        self.count, self.supported, self.driver, self.report = count, supported, driver, report
        self.state = SimpleNamespace(environment=environment, ccFeature=feature, devToolsMode=dev_tools)
        self.ready = []

    def nvmlInit(self):
        if not self.driver:
            raise self.NVMLError("Driver Not Loaded")

    def nvmlShutdown(self):
        pass

    def nvmlSystemGetDriverVersion(self):
        return b"550.144.03"

    def nvmlDeviceGetCount(self):
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, handle):
        return "NVIDIA H100 PCIe"

    def nvmlSystemGetConfComputeState(self):
        if not self.supported:
            raise self.NVMLError("Not Supported")
        return self.state

    def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle, nonce):
        if not self.report:
            raise self.NVMLError("Unknown Error")
        data = NVIDIA.report(MACHINE.device, nonce)
        return SimpleNamespace(attestationReport=data + bytes(0x2000 - len(data)), attestationReportSize=len(data))

    def nvmlDeviceGetConfComputeGpuCertificate(self, handle):
        data = MACHINE.device.chain
        return SimpleNamespace(attestationCertChain=data + bytes(100), attestationCertChainSize=len(data) + 1)

    def nvmlSystemSetConfComputeGpusReadyState(self, state):
        self.ready.append(state)


def test_a_confidential_gpu_gives_report_and_chain_of_their_true_lengths():
    gpus = NvmlGpus(PretendedNvml())
    gpus.open()
    (shown,) = gpus.evidence(bytes(32))
    assert shown.chain == MACHINE.device.chain
    assert shown.report[4:36] == bytes(32)
    assert len(shown.report) < 5000
    gpus.close()


@pytest.mark.parametrize(
    ("card", "words"),
    [
        ({"feature": 0}, "not in confidential-computing mode"),
        ({"supported": False}, "not in confidential-computing mode"),
        ({"dev_tools": 1}, "DevTools"),
        ({"environment": 1}, "simulation"),
        ({"environment": 0}, "unavailable"),
        ({"count": 8}, "8 GPUs"),
        ({"count": 0}, "0 GPUs"),
        ({"report": False}, "no attestation report"),
    ],
)
def test_a_card_that_is_not_confidential_is_refused_with_the_reason(card, words):
    with pytest.raises(Unavailable, match=words):
        NvmlGpus(PretendedNvml(**card)).evidence(bytes(32))


def test_no_driver_says_what_to_do():
    with pytest.raises(Unavailable) as error:
        NvmlGpus(PretendedNvml(driver=False)).open()
    assert "driver" in error.value.advice


# --- collateral ---


class Services:
    """Intel's and NVIDIA's services, answering with what the software TEE's makers sign."""

    def __init__(self, pccs=False):
        self.calls, self.down, self.pccs = [], False, pccs

    def __call__(self, url, body, content_type):
        self.calls.append(url)
        if self.down:
            raise Unavailable("down")
        made = json.loads(INTEL.collateral(issued_s=NOW_S - 60))
        quoted = urllib.parse.quote

        def signed(name, part):
            return f'{{"{name}":{made[part]},"signature":"{made[part + "_signature"]}"}}'.encode()

        headers = {"date": "Sat, 01 Jan 2000 00:00:00 GMT"}
        if "/tcb?" in url:
            headers["tcb-info-issuer-chain"] = quoted(made["tcb_info_issuer_chain"])
            return HttpAnswer(body=signed("tcbInfo", "tcb_info"), headers=headers)
        if "/qe/identity" in url:
            headers["sgx-enclave-identity-issuer-chain"] = quoted(made["qe_identity_issuer_chain"])
            return HttpAnswer(body=signed("enclaveIdentity", "qe_identity"), headers=headers)
        if "/pckcrl" in url:
            headers["sgx-pck-crl-issuer-chain"] = quoted(made["pck_crl_issuer_chain"])
            data = made["pck_crl"].encode() if self.pccs else bytes.fromhex(made["pck_crl"])
            return HttpAnswer(body=data, headers=headers)
        if url.endswith("IntelSGXRootCA.der"):
            return HttpAnswer(body=bytes.fromhex(made["root_ca_crl"]), headers={})
        if url.endswith("rootcacrl"):
            return HttpAnswer(body=made["root_ca_crl"].encode(), headers={})
        if "/v1/rim/" in url:
            rim = NVIDIA.rims()[0 if "DRIVER" in url else 1]
            return HttpAnswer(body=json.dumps({"rim": base64.b64encode(rim).decode()}).encode(), headers={})
        if "ocsp" in url:
            assert content_type == "application/ocsp-request"
            return HttpAnswer(body=NVIDIA.ocsp_answer(MACHINE.device, issued_s=NOW_S - 60), headers={})
        return HttpAnswer(body=NVIDIA.crls(issued_s=NOW_S - 60)[1 if "gh100" in url else 0], headers={})


class Now:
    def __init__(self):
        self.s = NOW_S

    def __call__(self):
        return self.s


def store(tmp_path, services=None, clock=None, **fields):
    services = services or Services()
    return CollateralStore(folder=tmp_path / "cache", clock_s=clock or Now(), http=services, **fields), services


@pytest.mark.parametrize("pccs", [False, True])
def test_collateral_from_intel_and_from_a_pccs_verifies(tmp_path, pccs):
    services = Services(pccs=pccs)
    fields = {"pcs": "https://pccs.example"} if pccs else {}
    collateral, _ = store(tmp_path, services, **fields)
    data = json.loads(collateral.intel(fmspc=INTEL.fmspc, ca="platform"))
    assert data["root_ca_crl"].startswith("30")
    assert data["pck_crl"].startswith("30")
    from cocoon.attest.tdx import verify_quote
    from cocoon.attest.trail import Trail

    quote = MACHINE.quote(MACHINE.fields(REPORT_DATA))
    anchors = software_anchors(Network.DEVNET)
    verify_quote(quote, json.dumps(data).encode(), anchors=anchors, now_s=NOW_S, trail=Trail())


def test_the_cache_spares_the_services_and_survives_a_restart(tmp_path):
    collateral, services = store(tmp_path)
    first = collateral.intel(fmspc=INTEL.fmspc, ca="platform")
    count = len(services.calls)
    again, _ = store(tmp_path, services)
    assert again.intel(fmspc=INTEL.fmspc, ca="platform") == first
    assert len(services.calls) == count


def test_a_dead_service_is_asked_ever_less_often_and_the_old_copy_serves(tmp_path):
    clock = Now()
    collateral, services = store(tmp_path, clock=clock)
    kept = collateral.rim("NV_GPU_DRIVER_GH100_1")
    clock.s += 31 * 24 * HOUR_S
    services.down = True
    before = len(services.calls)
    for _ in range(10):
        assert collateral.rim("NV_GPU_DRIVER_GH100_1") == kept
    assert len(services.calls) == before + 1
    clock.s += BACKOFF_FIRST_S
    assert collateral.rim("NV_GPU_DRIVER_GH100_1") == kept
    assert len(services.calls) == before + 2
    clock.s += BACKOFF_FIRST_S
    collateral.rim("NV_GPU_DRIVER_GH100_1")
    assert len(services.calls) == before + 2
    services.down = False
    clock.s += BACKOFF_FIRST_S
    collateral.rim("NV_GPU_DRIVER_GH100_1")
    assert len(services.calls) == before + 3


def test_offline_serves_the_cache_alone(tmp_path):
    collateral, services = store(tmp_path)
    collateral.crls()
    offline, _ = store(tmp_path, services, offline=True)
    before = len(services.calls)
    assert len(offline.crls()) == 2
    with pytest.raises(Unavailable, match="offline"):
        offline.rim("NV_GPU_DRIVER_GH100_1")
    assert len(services.calls) == before


@pytest.mark.parametrize("name", ["../../etc/passwd", "", "a/b", "x" * 200])
def test_a_rim_id_cannot_name_a_path(tmp_path, name):
    collateral, services = store(tmp_path)
    with pytest.raises(Unavailable, match="not a RIM id"):
        collateral.rim(name)
    assert services.calls == []


@pytest.mark.parametrize(
    "body", [b"", b"{}", b'{"tcbInfo":{},"signature":"00"}', b'{"other":1,"signature":"' + b"0" * 128 + b'"}', b"\xff"]
)
def test_an_answer_without_signed_content_is_an_outage(tmp_path, body):
    collateral, _ = store(tmp_path, lambda *_: HttpAnswer(body=body, headers={}))
    with pytest.raises(Unavailable):
        collateral.intel(fmspc=INTEL.fmspc, ca="platform")
    with pytest.raises(Unavailable):
        collateral.rim("NV_GPU_DRIVER_GH100_1")


# --- put together ---


def whole(tmp_path, nvml=None, **kernel):
    quotes = device(tmp_path, **kernel)
    (tmp_path / "runtime.json").write_bytes(MACHINE.logs()[1][1])
    collateral, _ = store(tmp_path)
    return HardwareEnclave(
        device=quotes,
        collateral=collateral,
        image=MACHINE.image,
        config=MACHINE.config,
        gpus=NvmlGpus(nvml or PretendedNvml()),
        anchors=software_anchors(Network.DEVNET),
    )


def test_an_enclave_of_devices_gives_the_evidence_that_the_software_tee_gives(tmp_path):
    async def main():
        machine = whole(tmp_path)
        gpus = await machine.gpu_evidence(bytes(32))
        return machine, gpus, await machine.bundle(report_data=REPORT_DATA, gpus=gpus)

    machine, gpus, bundle = trio.run(main)
    assert machine.mode == MODE_TDX_GPU
    assert len(evidence_digest(gpus[0].report, gpus[0].chain)) == 48
    assert bundle.logs == MACHINE.logs()
    assert bundle.rims == NVIDIA.rims()
    assert len(bundle.crls) == 2
    assert len(bundle.ocsp) == 1


def test_the_gpu_becomes_ready_only_after_the_guest_verified_it(tmp_path):
    nvml = PretendedNvml()
    proven = trio.run(lambda: whole(tmp_path, nvml).check_and_set_ready(nonce=bytes(32), now_s=NOW_S))
    assert proven.driver_version == "550.144.03"
    assert nvml.ready == [1]

    class ModifiedFirmware(PretendedNvml):
        def nvmlDeviceGetConfComputeGpuAttestationReport(self, handle, nonce):
            data = NVIDIA.report(MACHINE.device, nonce, measurements={25: bytes(48)})
            return SimpleNamespace(attestationReport=data, attestationReportSize=len(data))

    nvml = ModifiedFirmware()
    with pytest.raises(AttestationError):
        trio.run(lambda: whole(tmp_path, nvml).check_and_set_ready(nonce=bytes(32), now_s=NOW_S))
    assert nvml.ready == []


def examined(tmp_path, *, quotes, nvml, http=None, clock=None):
    collateral, services = store(tmp_path)
    return examine(
        device=quotes,
        open_gpus=None if nvml is None else lambda: NvmlGpus(nvml),
        collateral=collateral,
        http=http or services,
        clock_s=clock or Now(),
    )


def dated(url, body, content_type):
    answer = Services()(url, body, content_type)
    return replace(answer, headers={**answer.headers, "date": formatdate(NOW_S, usegmt=True)})


def test_doctor_names_every_lack_with_its_fix(tmp_path):
    findings = examined(tmp_path, quotes=device(tmp_path, provider=b"sev_guest"), nvml=PretendedNvml(dev_tools=1))
    assert [(f.name, f.passed) for f in findings] == [
        ("td-device", False), ("quote", False), ("event-logs", False), ("intel-collateral", False), ("clock", False),
        ("gpu-driver", True), ("gpu-cc-mode", False), ("gpu-report", False), ("gpu-collateral", False),
    ]  # fmt: skip
    assert all(bool(finding.fix) != finding.passed for finding in findings)
    assert "DevTools" in next(f.detail for f in findings if f.name == "gpu-cc-mode")


def test_doctor_is_content_with_a_good_machine(tmp_path):
    (tmp_path / "runtime.json").write_bytes(MACHINE.logs()[1][1])
    findings = examined(tmp_path, quotes=device(tmp_path), nvml=PretendedNvml(), http=dated)
    assert len(findings) == 9
    assert all(finding.passed for finding in findings), findings


def test_doctor_asks_a_machine_without_a_gpu_for_none(tmp_path):
    (tmp_path / "runtime.json").write_bytes(MACHINE.logs()[1][1])
    findings = examined(tmp_path, quotes=device(tmp_path), nvml=None, http=dated)
    assert [finding.name for finding in findings if "gpu" in finding.name] == []


def test_doctor_measures_the_clock_against_intels(tmp_path):
    late = examined(tmp_path, quotes=device(tmp_path), nvml=None, http=dated, clock=lambda: NOW_S + 61)
    clock = next(finding for finding in late if finding.name == "clock")
    assert not clock.passed
    assert "61 s" in clock.detail
    assert "NTP" in clock.fix


def test_doctor_lives_on_where_there_is_no_driver(tmp_path):
    def without():
        raise ConfigError("NVML's Python module is not installed", advice="pip install")

    collateral, services = store(tmp_path)
    findings = examine(device=device(tmp_path), open_gpus=without, collateral=collateral, http=services, clock_s=Now())
    assert [f.passed for f in findings if f.name.startswith("gpu")] == [False] * 4


def test_default_paths_are_the_kernels():
    assert Path("/sys/kernel/config/tsm/report") == configfs.REPORT_ROOT
