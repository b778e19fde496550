//! Virtual addresses in a namespace that routes between clients.

use std::collections::BTreeMap;
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use crate::common::{DEADLINE, Namespace, accept, as_an_ordinary_user, echo, with_namespaces};
use ringmail_redirect::Protocol;
use ringmail_redirect::services::{self, Service, ServiceMap};

const WEB: &str = "10.143.0.3:80";
const WEB_V6: &str = "[fd00:143::3]:80";

/// Pods `10.142.0.2`, `10.142.0.3` (`fd00:142::2`, `fd00:142::3`), each routed by way of the router.
struct Mesh {
    router: Namespace,
    pods: [Namespace; 2],
}

impl Mesh {
    fn new() -> Self {
        let mesh = Self { router: Namespace::new(), pods: [Namespace::new(), Namespace::new()] };
        mesh.router.run(|| {
            for name in ["ipv4/ip_forward", "ipv6/conf/all/forwarding"] {
                std::fs::write(format!("/proc/sys/net/{name}"), "1").expect("set");
            }
        });
        // For the router's own connections.
        mesh.router.ip("route add 10.143.0.0/16 dev lo");
        mesh.router.ip("-6 route add fd00:143::/64 dev lo");
        for (index, pod) in mesh.pods.iter().enumerate() {
            let (host, link) = (index + 2, format!("pod{index}"));
            mesh.router.link(&link, pod);
            mesh.router.ip(&format!("addr add 10.142.0.1/32 dev {link}"));
            mesh.router.ip(&format!("addr add fd00:142::1/128 dev {link} nodad"));
            mesh.router.ip(&format!("route add 10.142.0.{host}/32 dev {link}"));
            mesh.router.ip(&format!("-6 route add fd00:142::{host}/128 dev {link}"));
            pod.ip(&format!("addr add 10.142.0.{host}/32 dev eth0"));
            pod.ip(&format!("addr add fd00:142::{host}/128 dev eth0 nodad"));
            for family in ["-4", "-6"] {
                let gateway = if family == "-4" { "10.142.0.1" } else { "fd00:142::1" };
                pod.ip(&format!("{family} route add {gateway} dev eth0"));
                pod.ip(&format!("{family} route add default via {gateway}"));
            }
        }
        mesh
    }

    fn apply(&self, services: &[(&str, &[&str])]) {
        let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let service = |(at, ends): &(&str, &[&str])| Service {
            address: address(at),
            protocol: Protocol::Tcp,
            endpoints: ends.iter().map(|end| address(end)).collect(),
        };
        let map = ServiceMap { services: services.iter().map(service).collect() };
        self.router.run(|| services::apply(&map)).expect("applied");
        self.router.run(|| services::compare(&map)).expect("the same");
    }
}

fn refused<T>(result: io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// How many connections of `count` came to each listener.
fn spread(from: &Namespace, target: &str, listeners: &[TcpListener], count: usize) -> Vec<usize> {
    let mut seen = vec![0; listeners.len()];
    for _ in 0..count {
        let client = from.connect(target).expect("connected");
        let from = client.local_addr().expect("an address");
        let mut ready: BTreeMap<usize, SocketAddr> = BTreeMap::new();
        while ready.is_empty() {
            for (index, listener) in listeners.iter().enumerate() {
                listener.set_nonblocking(true).expect("set");
                if let Ok((_, peer)) = listener.accept() {
                    ready.insert(index, peer);
                }
            }
        }
        for (index, peer) in ready {
            assert_eq!(peer, from);
            seen[index] += 1;
        }
    }
    seen
}

#[test]
fn a_virtual_address_leads_to_its_endpoints_with_equal_chance() {
    with_namespaces("a_virtual_address_leads_to_its_endpoints_with_equal_chance", || {
        let mesh = Mesh::new();
        for (vip, ends) in [
            (WEB, ["10.142.0.3:8081", "10.142.0.3:8082", "10.142.0.3:8083"]),
            (WEB_V6, ["[fd00:142::3]:8081", "[fd00:142::3]:8082", "[fd00:142::3]:8083"]),
        ] {
            let listeners = ends.map(|end| mesh.pods[1].listen(end));
            mesh.apply(&[(vip, &ends)]);
            let seen = spread(&mesh.pods[0], vip, &listeners, 450);
            // 150 each; the standard deviation is 10, so 60 off happens once in 500 million runs.
            assert!(seen.iter().all(|count| (90..=210).contains(count)), "{seen:?}");
            // The router's own connections, such as probes and forwards, take the same way.
            let own = spread(&mesh.router, vip, &listeners, 12);
            assert_eq!(own.iter().sum::<usize>(), 12);
        }
        mesh.router.run(services::remove).expect("removed");
        assert!(mesh.pods[0].connect(WEB).is_err());
    });
}

#[test]
fn a_service_without_endpoints_and_a_port_without_service_refuse() {
    with_namespaces("a_service_without_endpoints_and_a_port_without_service_refuse", || {
        let mesh = Mesh::new();
        let server = mesh.pods[1].listen("10.142.0.3:8081");
        mesh.apply(&[("10.143.0.3:81", &[]), (WEB, &["10.142.0.3:8081"]), ("[fd00:143::3]:81", &[])]);
        for target in ["10.143.0.3:81", "10.143.0.3:9999", "[fd00:143::3]:81", "[fd00:143::3]:9999"] {
            assert!(refused(mesh.pods[0].connect(target)), "{target}");
            assert!(refused(mesh.router.connect(target)), "{target}");
        }
        let udp = mesh.pods[0].run(|| UdpSocket::bind("0.0.0.0:0")).expect("bound");
        udp.connect("10.143.0.3:81").expect("connected");
        udp.set_read_timeout(Some(DEADLINE)).expect("set");
        udp.send(b"ring").expect("sent");
        assert!(refused(udp.recv(&mut [0; 8])));
        // The twin: with an endpoint it answers.
        let mut client = mesh.pods[0].connect(WEB).expect("connected");
        echo(&mut client, &mut accept(&server));
        mesh.apply(&[("10.143.0.3:81", &["10.142.0.3:8081"])]);
        let mut client = mesh.pods[0].connect("10.143.0.3:81").expect("connected");
        echo(&mut client, &mut accept(&server));
    });
}

#[test]
fn connections_live_on_while_the_map_is_replaced() {
    with_namespaces("connections_live_on_while_the_map_is_replaced", || {
        let mesh = Mesh::new();
        let [old, new] = ["10.142.0.3:8081", "10.142.0.3:8082"].map(|end| mesh.pods[1].listen(end));
        mesh.apply(&[(WEB, &["10.142.0.3:8081"])]);
        let mut client = mesh.pods[0].connect(WEB).expect("connected");
        let mut accepted = accept(&old);
        for ends in [&["10.142.0.3:8082"][..], &[], &["10.142.0.3:8082"]] {
            mesh.apply(&[(WEB, ends)]);
            echo(&mut client, &mut accepted);
        }
        let mut other = mesh.pods[0].connect(WEB).expect("connected");
        echo(&mut other, &mut accept(&new));
        mesh.apply(&[]);
        echo(&mut client, &mut accepted);
    });
}

#[test]
fn nothing_is_refused_while_the_map_is_replaced_again_and_again() {
    with_namespaces("nothing_is_refused_while_the_map_is_replaced_again_and_again", || {
        let mesh = Mesh::new();
        let server = mesh.pods[1].listen("10.142.0.3:8081");
        let services: [(&str, &[&str]); 1] = [(WEB, &["10.142.0.3:8081"])];
        mesh.apply(&services);
        std::thread::scope(|scope| {
            let replacing = scope.spawn(|| (0..200).for_each(|_| mesh.apply(&services)));
            while !replacing.is_finished() {
                let _client = mesh.pods[0].connect(WEB).expect("connected");
                drop(accept(&server));
            }
            replacing.join().expect("replaced");
        });
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    with_namespaces("a_pod_reaches_itself_through_its_service", || {
        let mesh = Mesh::new();
        for (vip, end) in [(WEB, "10.142.0.2:8081"), (WEB_V6, "[fd00:142::2]:8081")] {
            let server = mesh.pods[0].listen(end);
            mesh.apply(&[(vip, &[end])]);
            let mut client = mesh.pods[0].connect(vip).expect("connected");
            let mut accepted = accept(&server);
            assert_ne!(accepted.peer_addr().expect("an address"), client.local_addr().expect("an address"));
            echo(&mut client, &mut accepted);
            // From elsewhere the source stays.
            let client = mesh.pods[1].connect(vip).expect("connected");
            assert_eq!(
                accept(&server).peer_addr().expect("a peer"),
                client.local_addr().expect("an address")
            );
        }
    });
}

#[test]
fn udp_takes_the_same_way() {
    with_namespaces("udp_takes_the_same_way", || {
        let mesh = Mesh::new();
        let server = mesh.pods[1].run(|| UdpSocket::bind("10.142.0.3:5353")).expect("bound");
        let read = |text: &str| text.parse::<SocketAddr>().expect("an address");
        let service = Service {
            address: read("10.143.0.10:53"),
            protocol: Protocol::Udp,
            endpoints: vec![read("10.142.0.3:5353")],
        };
        mesh.router.run(|| services::apply(&ServiceMap { services: vec![service] })).expect("applied");
        let client = mesh.pods[0].run(|| UdpSocket::bind("0.0.0.0:0")).expect("bound");
        client.connect("10.143.0.10:53").expect("connected");
        let mut bytes = [0; 8];
        for socket in [&server, &client] {
            socket.set_read_timeout(Some(DEADLINE)).expect("set");
        }
        client.send(b"ask").expect("sent");
        let (length, from) = server.recv_from(&mut bytes).expect("received");
        server.send_to(&bytes[..length], from).expect("answered");
        assert_eq!(client.recv(&mut bytes).expect("received"), 3);
    });
}

#[test]
fn the_same_holds_for_an_ordinary_user() {
    as_an_ordinary_user(&[
        "a_virtual_address_leads_to_its_endpoints_with_equal_chance",
        "a_service_without_endpoints_and_a_port_without_service_refuse",
        "connections_live_on_while_the_map_is_replaced",
        "nothing_is_refused_while_the_map_is_replaced_again_and_again",
        "a_pod_reaches_itself_through_its_service",
        "udp_takes_the_same_way",
    ]);
}
