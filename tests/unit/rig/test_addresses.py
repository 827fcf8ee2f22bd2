from ipaddress import ip_address, ip_network
from itertools import combinations

import pytest

from tests.cluster.rig.addresses import DNS_SERVICE, MAX_CLUSTERS, SERVICE_SUBNET, Addresses, lowest_free

pytestmark = pytest.mark.unit


def networks(addresses: Addresses):
    wire = ip_network(f"{addresses.control_plane}/24", strict=False)
    link = ip_network(f"{addresses.host_side}/30", strict=False)
    return [wire, link, ip_network(addresses.pod_subnet)]


@pytest.mark.parametrize(("one", "other"), combinations([0, 1, 50, MAX_CLUSTERS - 1], 2))
def test_two_clusters_share_no_address(one, other):
    for mine in networks(Addresses(one)):
        assert not any(mine.overlaps(theirs) for theirs in networks(Addresses(other)))


@pytest.mark.parametrize("number", [0, MAX_CLUSTERS - 1])
def test_a_clusters_networks_do_not_overlap(number):
    for one, other in combinations([*networks(Addresses(number)), ip_network(SERVICE_SUBNET)], 2):
        assert not one.overlaps(other)


def test_nodes_are_on_the_wire_and_their_pods_in_the_pod_subnet():
    addresses = Addresses(3)
    wire, _, pods = networks(addresses)
    for ordinal in (1, 2, 200):
        assert ip_address(addresses.node(ordinal)) in wire
        assert ip_network(addresses.node_pods(ordinal)).subnet_of(pods)
    assert addresses.node(1) != addresses.control_plane


def test_dns_is_a_service():
    assert ip_address(DNS_SERVICE) in ip_network(SERVICE_SUBNET)


def test_interface_names_fit_the_kernels_limit():
    assert len(Addresses(MAX_CLUSTERS - 1).host_interface) <= 15


@pytest.mark.parametrize("number", [-1, MAX_CLUSTERS])
def test_numbers_without_addresses_are_refused(number):
    with pytest.raises(ValueError, match="cluster number"):
        Addresses(number)


@pytest.mark.parametrize(("taken", "free"), [([], 0), ([0, 1], 2), ([1, 2], 0), ([2, 0, 0], 1)])
def test_the_lowest_free_number_is_chosen(taken, free):
    assert lowest_free(taken) == free
