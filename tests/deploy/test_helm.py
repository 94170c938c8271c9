"""The Helm chart, rendered: what Kubernetes would be given, compared with docker-compose.yml."""

import json
import re
import subprocess
import tomllib
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import kubernetes_validate
import pytest
import yaml

from datasite.configuration import Release, Rule, SiteConfig, load_site_config
from orchestrator.federation import load_federation

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "deploy" / "helm"
HELM = {major: ROOT / ".venv" / "helm" / str(major) / "helm" for major in (3, 4)}

Values: TypeAlias = Mapping[str, Any]
Object: TypeAlias = dict[str, Any]

SITES = ["factory-1", "factory-2", "factory-3"]
TLS_SITES = [{"name": name, "tls": {"existingSecret": f"{name}-tls"}} for name in SITES]
# The README's two files of values are cases of their own, so that what it shows is what works.
README_VALUES = {
    text.partition("\n")[0].strip("# "): yaml.safe_load(text)
    for text in re.findall(r"```yaml\n(.*?)```", (CHART / "README.md").read_text(), re.DOTALL)
}
CASES: dict[str, Values] = {
    "defaults": {},
    "tls": {"sites": TLS_SITES},
    "one-site-alone": {"orchestrator": {"enabled": False}, "sites": [{"name": "factory-1"}]},
    "a-factory": README_VALUES["factory.yaml"],
    "the-centre": README_VALUES["centre.yaml"],
}


def helm(major: int, *arguments: str, values: Values) -> subprocess.CompletedProcess[str]:
    """Run a Helm command on the chart; a machine without Helm is told what was not tested."""
    if not HELM[major].exists():
        message = f"THE CHART WAS NOT TESTED: no {HELM[major]}; tests/deploy/fetch_helm.py gets it"
        warnings.warn(message, stacklevel=2)
        pytest.skip(message)
    return subprocess.run(
        [HELM[major], *arguments, CHART, "--values", "-"],
        input=json.dumps(values),
        capture_output=True,
        text=True,
        check=False,
    )


def render(values: Values, *, major: int = 4) -> list[Object]:
    """Give the objects that the chart makes of the values."""
    done = helm(major, "template", "lab", values=values)
    assert done.returncode == 0, done.stderr
    return [found for found in yaml.safe_load_all(done.stdout) if found]


def one(objects: list[Object], kind: str, name: str) -> Object:
    """Give the only object of this kind and name."""
    (found,) = (o for o in objects if (o["kind"], o["metadata"]["name"]) == (kind, name))
    return found


def pods(objects: list[Object]) -> dict[str, Object]:
    """Give the pod templates, by the name of their Deployment or StatefulSet."""
    workloads = (o for o in objects if o["kind"] in {"Deployment", "StatefulSet"})
    return {o["metadata"]["name"]: o["spec"]["template"] for o in workloads}


def container(pod: Object) -> Object:
    """Give the pod's only container."""
    assert not set(pod["spec"]) & {"initContainers", "hostNetwork", "hostPID", "hostIPC"}
    (found,) = pod["spec"]["containers"]
    return dict(found)


def selected(selector: Object, templates: Mapping[str, Object]) -> set[str]:
    """Name the pods that a selector by labels means."""
    wanted = selector["matchLabels"].items()
    return {n for n, pod in templates.items() if wanted <= pod["metadata"]["labels"].items()}


def volumes(pod: Object) -> dict[str, Object]:
    """Give what is mounted, by the path where it is."""
    named = {volume["name"]: volume for volume in pod["spec"].get("volumes", [])}
    mounts = container(pod)["volumeMounts"]
    return {m["mountPath"]: named.get(m["name"], {"name": m["name"]}) for m in mounts}


def secret_files(pod: Object) -> dict[str, tuple[str, str]]:
    """Give each file of /run/secrets with its Secret and the key in it."""
    return {
        item["path"]: (source["secret"]["name"], item["key"])
        for source in volumes(pod)["/run/secrets"]["projected"]["sources"]
        for item in source["secret"]["items"]
    }


def mentioned_files(text: str) -> set[str]:
    """Name the files under /run/secrets that a configuration reads."""
    return set(re.findall(r"/run/secrets/(\S+)", text))


@pytest.mark.parametrize("major", HELM, ids=lambda major: f"helm-{major}")
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_helm_has_no_complaint(major: int, values: Values) -> None:
    """Warnings count."""
    done = helm(major, "lint", "--strict", values=values)
    assert done.returncode == 0, done.stdout
    assert "1 chart(s) linted, 0 chart(s) failed" in done.stdout


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_helm_3_and_helm_4_render_the_same(values: Values) -> None:
    """Who changes from one to the other changes nothing in the cluster."""
    assert render(values, major=3) == render(values, major=4)


@pytest.mark.parametrize("version", ["1.33", "1.37"])
@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_object_is_one_of_kubernetes(version: str, values: Values) -> None:
    """By the schemas of the API, and with no key that they do not know."""
    objects = render(values)
    assert objects
    for found in objects:
        assert kubernetes_validate.validate(found, version, strict=True) == version


@pytest.mark.parametrize("major", HELM, ids=lambda major: f"helm-{major}")
@pytest.mark.parametrize(
    ("values", "complaints"),
    [
        ({"sites": [{"name": "factory-1", "password": "x"}]}, ["password", "not allowed"]),
        ({"sites": [{"name": "Factory_1"}]}, ["name", "match pattern"]),
        ({"sites": [{"name": "factory-1", "operator": "nobody"}]}, ["operator", "match pattern"]),
        (
            {"sites": [{"name": "factory-1", "resources": {"limits": {"cpu": 1}}}]},
            ["resources", "memory"],
        ),
        ({"replicas": 2}, ["replicas", "not allowed"]),
        ({"sites": [{"name": "a"}, {"name": "a"}]}, ["a: two sites have this name"]),
        ({"sites": []}, ["the orchestrator has no sites"]),
        ({"sites": [], "orchestrator": {"enabled": False}}, ["nothing to install"]),
        (
            {"sites": [{"name": "factory-1", "service": {"type": "LoadBalancer"}}]},
            ["factory-1: a service of type LoadBalancer", "needs tls.existingSecret"],
        ),
        (
            {"orchestrator": {**CASES["the-centre"]["orchestrator"], "egress": []}},
            ["give their addresses under orchestrator.egress"],
        ),
        (
            {"sites": [{"name": "factory-1", "settings": {"listen": {"port": 1}}}]},
            ["settings", "listen"],
        ),
    ],
    ids=[
        "a-password",
        "a-name-that-is-none",
        "an-email-that-is-none",
        "no-limit-of-memory",
        "an-unknown-key",
        "a-name-twice",
        "no-sites",
        "nothing-at-all",
        "passwords-in-the-open",
        "no-way-to-a-site",
        "a-setting-of-the-chart's",
    ],
)
def test_wrong_values_are_refused(major: int, values: Values, complaints: list[str]) -> None:
    """Before anything reaches a cluster, and with the place of the mistake."""
    done = helm(major, "template", "lab", values=values)
    assert done.returncode != 0
    assert done.stdout == ""
    for complaint in complaints:
        assert complaint in done.stderr


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_every_pod_is_hardened_as_in_compose(values: Values, compose: Object) -> None:
    """The same account, limits and locks, and those that only Kubernetes has."""
    for name, pod in pods(render(values)).items():
        site = name if name in SITES else "orchestrator"
        service = compose["services"][site]
        spec, security = pod["spec"], container(pod)["securityContext"]
        account = (spec["securityContext"]["runAsUser"], spec["securityContext"]["runAsGroup"])
        assert "{}:{}".format(*account) == service["user"]
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert security["readOnlyRootFilesystem"] is service["read_only"] is True
        assert security["capabilities"] == {"drop": service["cap_drop"]}
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert security["allowPrivilegeEscalation"] is False
        assert spec["shareProcessNamespace"] is service["init"] is True
        # Any other policy opens the site's private files to the group with each mount.
        assert spec["securityContext"]["fsGroup"] == spec["securityContext"]["runAsGroup"]
        assert spec["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is spec["enableServiceLinks"] is False
        memory = service["deploy"]["resources"]["limits"]["memory"]
        assert container(pod)["resources"]["limits"] == {"memory": memory.replace("g", "Gi")}
        (tmpfs,) = service["tmpfs"]
        target, _, options = tmpfs.partition(":")
        assert options.startswith("size=256m,")
        assert volumes(pod)[target]["emptyDir"] == {"medium": "Memory", "sizeLimit": "256Mi"}
        # The images bring command, working folder and environment.
        assert not set(container(pod)) & {"command", "args", "workingDir", "env", "envFrom"}
        assert not {"command", "entrypoint", "working_dir"} & set(service)


@pytest.mark.parametrize("name", SITES)
def test_a_site_is_given_what_it_is_given_in_compose(name: str, compose: Object) -> None:
    """Image, volume, configuration and secrets, at the same paths."""
    objects = render({})
    pod, service = pods(objects)[name], compose["services"][name]
    assert container(pod)["image"] == service["image"]
    assert volumes(pod)["/etc/datasite/site.yaml"]["configMap"] == {"name": f"{name}-site"}
    assert [use["target"] for use in service["configs"]] == ["/etc/datasite/site.yaml"]
    assert service["environment"] == {"SITE_ID": name}  # which stands in the site.yaml itself here
    assert service["volumes"] == [f"{name}:/var/lib/datasite"]
    stateful = one(objects, "StatefulSet", name)["spec"]
    claims = [claim["metadata"]["name"] for claim in stateful["volumeClaimTemplates"]]
    assert [volumes(pod)["/var/lib/datasite"]["name"]] == claims
    assert stateful["replicas"] == 1
    assert set(secret_files(pod)) == {use["target"] for use in service["secrets"]}
    assert {secret for secret, _ in secret_files(pod).values()} == {f"{name}-accounts"}
    grace = f"{pod['spec']['terminationGracePeriodSeconds']}s"
    assert grace == service["stop_grace_period"]


def test_the_orchestrator_is_ready_when_its_image_calls_it_healthy() -> None:
    """One check, spelt in the Dockerfile and in the chart."""
    dockerfile = (ROOT / "deploy" / "Dockerfile").read_text()
    image = dockerfile.partition("AS orchestrator\n")[2]
    (command,) = re.findall(r"^HEALTHCHECK .* CMD (\[.*\])$", image, re.MULTILINE)
    probe = container(pods(render({}))["lab-orchestrator"])["readinessProbe"]
    assert probe["exec"]["command"] == json.loads(command)


def test_the_orchestrator_is_given_what_it_is_given_in_compose(compose: Object) -> None:
    """Its experiments are those of the image, which compose mounts anew from the checkout."""
    pod, service = pods(render({}))["lab-orchestrator"], compose["services"]["orchestrator"]
    assert container(pod)["image"] == service["image"]
    assert [use["target"] for use in service["configs"]] == ["/etc/orchestrator/sites.yaml"]
    assert volumes(pod)["/etc/orchestrator/sites.yaml"]["configMap"] == {"name": "lab-orchestrator"}
    experiments = "./deploy/experiments:/var/lib/orchestrator/experiments:ro"
    assert service["volumes"] == ["runs:/var/lib/orchestrator/runs", experiments]
    assert "persistentVolumeClaim" in volumes(pod)["/var/lib/orchestrator/runs"]
    assert "/var/lib/orchestrator/experiments" not in volumes(pod)
    found = {file: f"{secret}.{key}" for file, (secret, key) in secret_files(pod).items()}
    wanted = {use["target"]: use["source"] for use in service["secrets"]}
    assert found == {file: source.replace(".", "-accounts.") for file, source in wanted.items()}


@pytest.mark.parametrize("folder", ["compose", "tls"])
@pytest.mark.parametrize("name", SITES)
def test_site_yaml_is_that_of_compose(
    name: str, folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the site reads it, with TLS and without; but samples may be counted in small groups."""
    monkeypatch.setenv("SITE_ID", name)
    objects = render(CASES["tls"] if folder == "tls" else {})
    rendered = tmp_path / "site.yaml"
    rendered.write_text(one(objects, "ConfigMap", f"{name}-site")["data"]["site.yaml"])
    monkeypatch.delenv("SITE_ID")
    found = load_site_config(rendered)
    monkeypatch.setenv("SITE_ID", name)
    testbeds = load_site_config(ROOT / "deploy" / folder / "site.yaml")
    assert (found.release, found.site_id) == (Release(), name)
    assert found.model_copy(update={"release": testbeds.release}) == testbeds


@pytest.mark.parametrize("folder", ["compose", "tls"])
def test_sites_yaml_is_that_of_compose(folder: str, tmp_path: Path) -> None:
    """But for the authority's file: each site has its own here, and may have its own authority."""
    objects = render(CASES["tls"] if folder == "tls" else {})
    rendered = tmp_path / "sites.yaml"
    rendered.write_text(one(objects, "ConfigMap", "lab-orchestrator")["data"]["sites.yaml"])
    found = load_federation(rendered).sites
    expected = load_federation(ROOT / "deploy" / folder / "sites.yaml").sites
    if folder == "tls":
        assert {site.ca_file for site in expected} == {Path("/run/secrets/ca.crt")}
        paths = [Path(f"/run/secrets/{site.site_id}.ca.crt") for site in found]
        assert [site.ca_file for site in found] == paths
        expected = tuple(
            site.model_copy(update={"ca_file": path})
            for site, path in zip(expected, paths, strict=True)
        )
    assert found == expected


@pytest.mark.parametrize("values", CASES.values(), ids=CASES)
def test_a_pod_has_the_secrets_that_its_configuration_reads(values: Values, tmp_path: Path) -> None:
    """And no others: the orchestrator has no operator's password, and nobody else's key."""
    objects = render(values)
    for name, pod in pods(objects).items():
        if name == "lab-orchestrator":
            text = one(objects, "ConfigMap", name)["data"]["sites.yaml"]
            (tmp_path / "sites.yaml").write_text(text)
            load_federation(tmp_path / "sites.yaml")
            assert {key for _, key in secret_files(pod).values()} <= {"researcher", "ca.crt"}
        else:
            text = one(objects, "ConfigMap", f"{name}-site")["data"]["site.yaml"]
            (tmp_path / "site.yaml").write_text(text)
            load_site_config(tmp_path / "site.yaml")
        assert set(secret_files(pod)) == mentioned_files(text)


def who_may_come(objects: list[Object], site: str) -> set[str]:
    """Name the pods and the blocks of addresses that a site's NetworkPolicy lets in."""
    policy = one(objects, "NetworkPolicy", site)["spec"]
    assert selected(policy["podSelector"], pods(objects)) == {site}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["egress"] == []
    found: set[str] = set()
    for rule in policy["ingress"]:
        assert rule["from"], "an empty list of peers lets everybody in"
        assert rule["ports"] == [{"protocol": "TCP", "port": port_of(objects, site)}]
        for peer in rule["from"]:
            if "ipBlock" in peer:
                found.add(peer["ipBlock"]["cidr"])
            else:
                assert set(peer) == {"podSelector"}  # so within the namespace
                found |= selected(peer["podSelector"], pods(objects))
    return found


def port_of(objects: list[Object], site: str) -> int:
    """Give the port on which a site listens, which its Service and its probes must mean too."""
    (port,) = container(pods(objects)[site])["ports"]
    (served,) = one(objects, "Service", site)["spec"]["ports"]
    assert (served["port"], served["targetPort"]) == (port["containerPort"], port["name"])
    config = yaml.safe_load(one(objects, "ConfigMap", f"{site}-site")["data"]["site.yaml"])
    assert config["listen"]["port"] == port["containerPort"]
    return int(port["containerPort"])


def test_a_site_is_as_alone_as_in_compose(compose: Object) -> None:
    """Who shares its internal network there may come in here; nothing goes out in either."""
    objects = render({})
    for site in SITES:
        (network,) = compose["services"][site]["networks"]
        assert compose["networks"][network]["internal"] is True
        services = compose["services"].items()
        members = {name for name, service in services if network in service["networks"]} - {site}
        assert {name.removeprefix("lab-") for name in who_may_come(objects, site)} == members
        assert members == {"orchestrator"}


@pytest.mark.parametrize(
    ("case", "callers"),
    [
        ("tls", {"lab-orchestrator"}),
        ("one-site-alone", set()),
        ("a-factory", {"198.51.100.7/32"}),
    ],
)
def test_a_site_is_reached_by_whom_the_values_say(case: str, callers: set[str]) -> None:
    """With no orchestrator and no addresses, by nobody."""
    assert who_may_come(render(CASES[case]), "factory-1") == callers


@pytest.mark.parametrize(
    ("case", "ways"),
    [
        ("defaults", {("factory-1", 8080), ("factory-2", 8080), ("factory-3", 8080)}),
        ("tls", {("factory-1", 8443), ("factory-2", 8443), ("factory-3", 8443)}),
        ("the-centre", {("203.0.113.10/32", 8443)}),
    ],
)
def test_the_orchestrator_gets_to_its_sites_and_nowhere_else(
    case: str, ways: set[tuple[str, int]]
) -> None:
    """Beside them to the cluster's name servers; and nobody calls it."""
    objects = render(CASES[case])
    policy = one(objects, "NetworkPolicy", "lab-orchestrator")["spec"]
    assert selected(policy["podSelector"], pods(objects)) == {"lab-orchestrator"}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    assert policy["ingress"] == []
    names, *others = policy["egress"]
    assert {port["port"] for port in names["ports"]} == {53}
    kube_system = {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}}
    assert names["to"] == [{"namespaceSelector": kube_system}]
    assert {way for rule in others for way in ways_of(rule, objects)} == ways


def ways_of(rule: Object, objects: list[Object]) -> Iterator[tuple[str, int]]:
    """Give the pods or blocks of addresses that a rule leads to, each with the port."""
    (port,) = rule["ports"]
    (peer,) = rule["to"]
    if "ipBlock" in peer:
        yield peer["ipBlock"]["cidr"], port["port"]
    else:
        yield from ((n, port["port"]) for n in selected(peer["podSelector"], pods(objects)))


@pytest.mark.parametrize(("case", "scheme"), [("defaults", "HTTP"), ("tls", "HTTPS")])
def test_a_site_that_trains_is_not_restarted_for_being_slow(case: str, scheme: str) -> None:
    """It starts within minutes, and later may be silent for five before it is replaced."""
    objects = render(CASES[case])
    for name in SITES:
        site = container(pods(objects)[name])
        probes = [site[f"{kind}Probe"] for kind in ("startup", "readiness", "liveness")]
        asked = {"path": "/api/v2/", "port": site["ports"][0]["name"], "scheme": scheme}
        assert [probe["httpGet"] for probe in probes] == [asked] * 3
        patience_s = [probe["periodSeconds"] * probe["failureThreshold"] for probe in probes]
        assert patience_s == [300, 30, 300]


def test_a_site_says_what_the_defaults_do_not() -> None:
    """A key of a site replaces the default's value as a whole, also by an empty one."""
    own = {
        "name": "factory-2",
        "operator": "chief@factory-2.example.com",
        "policy": [],
        "settings": {"plan_days": 7, "training": {"threads": 2}},
        "resources": {"limits": {"memory": "3Gi"}},
        "storage": {"size": "50Gi", "storageClassName": "fast"},
        "nodeSelector": {"disk": "nvme"},
        "existingSecret": "press-shop",
    }
    objects = render({"sites": [{"name": "factory-1"}, own]})
    pod = pods(objects)["factory-2"]
    config = yaml.safe_load(one(objects, "ConfigMap", "factory-2-site")["data"]["site.yaml"])
    assert config["operator"]["email"] == "chief@factory-2.example.com"
    assert (config["policy"], config["plan_days"], config["training"]) == ([], 7, {"threads": 2})
    assert container(pod)["resources"] == {"limits": {"memory": "3Gi"}}
    assert pod["spec"]["nodeSelector"] == {"disk": "nvme"}
    assert {secret for secret, _ in secret_files(pod).values()} == {"press-shop"}
    (claim,) = one(objects, "StatefulSet", "factory-2")["spec"]["volumeClaimTemplates"]
    assert claim["spec"]["storageClassName"] == "fast"
    assert claim["spec"]["resources"] == {"requests": {"storage": "50Gi"}}
    other = pods(objects)["factory-1"]
    assert container(other)["resources"]["limits"] == {"memory": "1Gi"}
    assert "nodeSelector" not in other["spec"]


def test_a_pod_restarts_when_its_configuration_changes() -> None:
    """A file that is mounted alone does not follow its ConfigMap, so the pod must be a new one."""
    before, after = (
        {n: pod["metadata"]["annotations"] for n, pod in pods(render({"sites": sites})).items()}
        for sites in (
            [{"name": "factory-1"}, {"name": "factory-2"}],
            [{"name": "factory-1"}, {"name": "factory-2", "researcher": "new@lab.example.com"}],
        )
    )
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"factory-2", "lab-orchestrator"}


def test_the_chart_is_of_the_projects_version() -> None:
    """Images without a tag of their own are taken at the chart's appVersion."""
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (chart["name"], chart["appVersion"]) == (project["name"], project["version"])


def test_the_schema_knows_the_settings_of_a_site() -> None:
    """A condition that rules gain can be given; what the chart writes cannot be written twice."""
    schema = json.loads((CHART / "values.schema.json").read_text())["definitions"]
    assert set(schema["policy"]["items"]["properties"]) == set(Rule.model_fields)
    of_the_chart = {key for key, allowed in schema["settings"]["properties"].items() if not allowed}
    others = {"auditors", "plan_days", "training", "approvals", "approvers", "release"}
    others |= {"budget", "secure_aggregation"}
    assert set(SiteConfig.model_fields) - of_the_chart == others
    site, defaults = (
        schema["site"]["properties"],
        yaml.safe_load((CHART / "values.yaml").read_text()),
    )
    assert set(site) - set(defaults["siteDefaults"]) == {"name", "existingSecret", "tls"}
    assert set(defaults["siteDefaults"]) <= set(site)
