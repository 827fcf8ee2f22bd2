"""Settings from the environment."""

import pytest

from dpo_operator.config import Config, ConfigError, Election

pytestmark = pytest.mark.unit

LEAST = {"DPO_TRAINER_IMAGE": "registry.example/trainer:1"}


def test_defaults_watch_everything():
    config = Config.from_environment(LEAST)
    assert (config.namespaces, config.metrics_port, config.health_port) == ((), 9400, 8080)
    assert (config.resync_seconds, config.progress_seconds, config.log_format) == (30.0, 3.0, "json")
    assert config.image.pull_policy == "IfNotPresent"


def test_memory_of_gpus_is_a_quantity():
    assert Config.from_environment(LEAST | {"DPO_GPU_MEMORY": "80Gi"}).gpu_memory == 80 * 2**30
    assert Config.from_environment(LEAST).gpu_memory is None


def test_namespaces_are_a_list():
    assert Config.from_environment(LEAST | {"WATCH_NAMESPACES": "a, b,,"}).namespaces == ("a", "b")


@pytest.mark.parametrize(
    ("environment", "part"),
    [
        ({"DPO_TRAINER_IMAGE": " "}, "DPO_TRAINER_IMAGE: expected"),
        ({"DPO_METRICS_PORT": "http"}, "found 'http'"),
        ({"DPO_RESYNC_SECONDS": "0"}, "from 1 to 3600, found '0'"),
        ({"DPO_LEADER_ELECTION": "yes"}, "expected true or false, found 'yes'"),
        ({"DPO_LEADER_ELECTION": "true"}, "POD_NAMESPACE and POD_NAME"),
        ({"DPO_LOG_FORMAT": "xml"}, "expected json or plain, found 'xml'"),
        ({"DPO_GPU_MEMORY": "80gb"}, "DPO_GPU_MEMORY: expected an amount such as 80Gi, found '80gb'"),
        ({"DPO_ALLOW": '{"images": ["a*b"]}'}, "DPO_ALLOW: images"),
        ({"DPO_ALLOW": '{"hostNetworks": true}'}, "DPO_ALLOW: hostNetworks"),
        ({"DPO_NETWORK": '{"open": ["169.254.169.254/32"]}'}, "DPO_NETWORK: open.*never opened"),
        ({"DPO_NETWORK": '{"open": ["10.0.0.1/8"]}'}, "has host bits set"),
        ({"DPO_NETWORK": "[]"}, "expected a JSON object"),
        ({"DPO_ALLOW": "{"}, "expected a JSON object"),
        ({"DPO_TRAINER_IMAGE_PULL_POLICY": "Sometimes"}, "found 'Sometimes'"),
    ],
)
def test_bad_value_is_named_with_what_was_expected(environment, part):
    with pytest.raises(ConfigError, match=part):
        Config.from_environment(LEAST | environment)


def test_election_needs_to_know_the_pod():
    pod = {"POD_NAMESPACE": "system", "POD_NAME": "operator-1"}
    assert Config.from_environment(LEAST).election is None
    assert Config.from_environment(LEAST | pod).election == Election("system", "dpo-operator", "operator-1")
    assert Config.from_environment(LEAST | pod | {"DPO_LEADER_ELECTION": "false"}).election is None
