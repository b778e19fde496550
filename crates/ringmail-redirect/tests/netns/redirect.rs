//! Real connections through real rules, in network namespaces, IPv4 and IPv6.

use std::io;
use std::net::{TcpListener, UdpSocket};

use crate::common::{
    DEADLINE, Pod, accept, as_an_ordinary_user, echo, is_idle, original_destination, with_namespaces,
};
use ringmail_redirect::{PROXY_MARK, Plan, parse_ports};

fn plan() -> Plan {
    Plan { exempt_mark: Some(PROXY_MARK), ..Plan::default() }
}

fn apply(pod: &Pod, plan: &Plan) {
    pod.inside.run(|| plan.apply()).expect("applied");
}

fn remove(pod: &Pod) {
    pod.inside.run(Plan::remove).expect("removed");
}

/// The proxy's ports, as it will listen.
struct Proxy {
    inbound: [TcpListener; 2],
    outbound: [TcpListener; 2],
}

impl Proxy {
    fn new(pod: &Pod) -> Self {
        Self {
            inbound: ["0.0.0.0:4143", "[::]:4143"].map(|address| pod.inside.listen(address)),
            outbound: ["127.0.0.1:4140", "[::1]:4140"].map(|address| pod.inside.listen(address)),
        }
    }

    fn is_idle(&self) -> bool {
        self.inbound.iter().chain(&self.outbound).all(is_idle)
    }
}

fn both(v4: &str, v6: &str, port: u16) -> [String; 2] {
    [format!("{v4}:{port}"), format!("[{v6}]:{port}")]
}

fn to_pod(port: u16) -> [String; 2] {
    both("10.1.0.2", "fd00:1::2", port)
}

fn to_outside(port: u16) -> [String; 2] {
    both("10.1.0.1", "fd00:1::1", port)
}

fn refused<T>(result: io::Result<T>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::ConnectionRefused)
}

#[test]
fn inbound_connections_land_in_the_proxy_with_their_original_destination() {
    with_namespaces("inbound_connections_land_in_the_proxy_with_their_original_destination", || {
        let pod = Pod::new();
        let proxy = Proxy::new(&pod);
        apply(&pod, &plan());
        for (target, listener) in to_pod(8080).iter().zip(&proxy.inbound) {
            let mut client = pod.outside.connect(target).expect("connected");
            let mut accepted = accept(listener);
            assert_eq!(original_destination(&accepted), *target);
            echo(&mut client, &mut accepted);
        }
        // The twin: without rules nobody listens there.
        remove(&pod);
        assert!(to_pod(8080).iter().all(|target| refused(pod.outside.connect(target))));
    });
}

#[test]
fn one_listener_for_both_families_has_the_original_destination_of_each() {
    with_namespaces("one_listener_for_both_families_has_the_original_destination_of_each", || {
        let pod = Pod::new();
        let listener = pod.inside.listen_dual(4143);
        apply(&pod, &plan());
        for target in to_pod(8080) {
            let mut client = pod.outside.connect(&target).expect("connected");
            let mut accepted = accept(&listener);
            assert_eq!(original_destination(&accepted), target);
            echo(&mut client, &mut accepted);
        }
    });
}

#[test]
fn outbound_connections_land_in_the_proxy_with_their_original_destination() {
    with_namespaces("outbound_connections_land_in_the_proxy_with_their_original_destination", || {
        let pod = Pod::new();
        let proxy = Proxy::new(&pod);
        let servers = to_outside(9000).map(|address| pod.outside.listen(&address));
        apply(&pod, &plan());
        for (target, listener) in to_outside(9000).iter().zip(&proxy.outbound) {
            let mut client = pod.inside.connect(target).expect("connected");
            let mut accepted = accept(listener);
            assert_eq!(original_destination(&accepted), *target);
            echo(&mut client, &mut accepted);
        }
        assert!(servers.iter().all(is_idle));
        remove(&pod);
        for (target, server) in to_outside(9000).iter().zip(&servers) {
            let mut client = pod.inside.connect(target).expect("connected");
            echo(&mut client, &mut accept(server));
        }
        assert!(proxy.is_idle());
    });
}

#[test]
fn skipped_ports_and_the_proxys_own_are_reached_directly() {
    with_namespaces("skipped_ports_and_the_proxys_own_are_reached_directly", || {
        let pod = Pod::new();
        let proxy = Proxy::new(&pod);
        let skip = |text| parse_ports(text).expect("valid");
        let skipping = Plan {
            skip_inbound: skip("4190,4191,5432,7000-7010"),
            skip_outbound: skip("25,3306-3310"),
            ..plan()
        };
        for (plan, inbound, outbound) in [
            (&plan(), &[4190, 4191][..], &[][..]),
            (&skipping, &[4190, 4191, 5432, 7000, 7005, 7010], &[25, 3306, 3308, 3310]),
        ] {
            apply(&pod, plan);
            for target in inbound.iter().flat_map(|port| to_pod(*port)) {
                let server = pod.inside.listen(&target);
                let mut client = pod.outside.connect(&target).expect("connected");
                echo(&mut client, &mut accept(&server));
            }
            for target in outbound.iter().flat_map(|port| to_outside(*port)) {
                let server = pod.outside.listen(&target);
                let mut client = pod.inside.connect(&target).expect("connected");
                echo(&mut client, &mut accept(&server));
            }
            assert!(proxy.is_idle());
        }
        // The twin: their neighbours are redirected.
        for (target, index) in
            [5431, 5433, 6999, 7011].iter().flat_map(|port| to_pod(*port).into_iter().zip(0..))
        {
            let _client = pod.outside.connect(&target).expect("connected");
            assert_eq!(original_destination(&accept(&proxy.inbound[index])), target);
        }
        for (target, index) in
            [24, 26, 3305, 3311].iter().flat_map(|port| to_outside(*port).into_iter().zip(0..))
        {
            let _client = pod.inside.connect(&target).expect("connected");
            assert_eq!(original_destination(&accept(&proxy.outbound[index])), target);
        }
    });
}

#[test]
fn a_connection_to_the_inbound_port_itself_reaches_it() {
    with_namespaces("a_connection_to_the_inbound_port_itself_reaches_it", || {
        let pod = Pod::new();
        let proxy = Proxy::new(&pod);
        apply(&pod, &plan());
        for (target, listener) in to_pod(4143).iter().zip(&proxy.inbound) {
            let mut client = pod.outside.connect(target).expect("connected");
            let mut accepted = accept(listener);
            assert_eq!(original_destination(&accepted), *target);
            echo(&mut client, &mut accepted);
        }
    });
}

#[test]
fn marked_sockets_are_exempt_and_others_are_not() {
    with_namespaces("marked_sockets_are_exempt_and_others_are_not", || {
        let pod = Pod::new();
        let proxy = Proxy::new(&pod);
        let servers = to_outside(9000).map(|address| pod.outside.listen(&address));
        apply(&pod, &plan());
        for (index, target) in to_outside(9000).iter().enumerate() {
            let marked = |socket: &socket2::Socket| socket.set_mark(PROXY_MARK).expect("marked");
            let mut client = pod.inside.connect_with(target, marked).expect("connected");
            echo(&mut client, &mut accept(&servers[index]));
            assert!(proxy.is_idle());
            let other = |socket: &socket2::Socket| socket.set_mark(PROXY_MARK + 1).expect("marked");
            let _client = pod.inside.connect_with(target, other).expect("connected");
            assert_eq!(original_destination(&accept(&proxy.outbound[index])), *target);
        }
    });
}

#[test]
fn the_proxys_uid_is_exempt_and_another_is_not() {
    with_namespaces("the_proxys_uid_is_exempt_and_another_is_not", || {
        let pod = Pod::new();
        let proxy = Proxy::new(&pod);
        let servers = to_outside(9000).map(|address| pod.outside.listen(&address));
        // For an ordinary user this is the uid already; for root, the uid that files and sockets are made with.
        let as_proxy = |target: &str| {
            let target: std::net::SocketAddr = target.parse().expect("an address");
            pod.inside.run(move || {
                nix::unistd::setfsuid(2102.into());
                std::net::TcpStream::connect_timeout(&target, DEADLINE).expect("connected")
            })
        };
        for (index, target) in to_outside(9000).iter().enumerate() {
            apply(&pod, &Plan { exempt_uid: Some(2102), exempt_mark: None, ..plan() });
            let mut client = as_proxy(target);
            echo(&mut client, &mut accept(&servers[index]));
            assert!(proxy.is_idle());
            apply(&pod, &Plan { exempt_uid: Some(2103), exempt_mark: None, ..plan() });
            let _client = as_proxy(target);
            assert_eq!(original_destination(&accept(&proxy.outbound[index])), *target);
        }
    });
}

#[test]
fn skipped_networks_are_reached_directly_and_others_are_not() {
    with_namespaces("skipped_networks_are_reached_directly_and_others_are_not", || {
        let pod = Pod::new();
        let proxy = Proxy::new(&pod);
        pod.outside.ip("addr add 10.9.0.1/32 dev pod");
        pod.outside.ip("addr add fd00:9::1/128 dev pod nodad");
        let nets = |texts: [&str; 2]| texts.map(|text| text.parse().expect("a network")).to_vec();
        // A prefix that ends inside a byte, an exact address.
        let (near, far) = (nets(["10.1.0.0/23", "fd00:1::/63"]), nets(["10.9.0.1/32", "fd00:9::1/128"]));
        apply(&pod, &Plan { skip_sources: near.clone(), skip_destinations: far, ..plan() });
        for (index, target) in to_pod(8080).iter().enumerate() {
            let server = pod.inside.listen(target);
            let mut client = pod.outside.connect(target).expect("connected");
            echo(&mut client, &mut accept(&server));
            let source =
                both("10.9.0.1", "fd00:9::1", 0)[index].parse::<std::net::SocketAddr>().expect("an address");
            let from_far = move |socket: &socket2::Socket| socket.bind(&source.into()).expect("bound");
            let _client = pod.outside.connect_with(target, from_far).expect("connected");
            assert_eq!(original_destination(&accept(&proxy.inbound[index])), *target);
        }
        for (index, target) in both("10.9.0.1", "fd00:9::1", 9000).iter().enumerate() {
            let server = pod.outside.listen(target);
            let mut client = pod.inside.connect(target).expect("connected");
            echo(&mut client, &mut accept(&server));
            let near = &to_outside(9000)[index];
            let _client = pod.inside.connect(near).expect("connected");
            assert_eq!(original_destination(&accept(&proxy.outbound[index])), *near);
        }
    });
}

#[test]
fn loopback_the_pods_own_address_and_udp_are_left_alone() {
    with_namespaces("loopback_the_pods_own_address_and_udp_are_left_alone", || {
        let pod = Pod::new();
        let proxy = Proxy::new(&pod);
        apply(&pod, &plan());
        for target in both("127.0.0.1", "::1", 8080).into_iter().chain(to_pod(8081)) {
            let server = pod.inside.listen(&target);
            let mut client = pod.inside.connect(&target).expect("connected");
            echo(&mut client, &mut accept(&server));
        }
        assert!(proxy.is_idle());
        let server = pod.outside.run(|| UdpSocket::bind("10.1.0.1:9000")).expect("bound");
        server.set_read_timeout(Some(DEADLINE)).expect("set");
        pod.inside.run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"ring", "10.1.0.1:9000")).expect("sent");
        let mut bytes = [0; 8];
        assert_eq!(server.recv(&mut bytes).expect("received"), 4);
    });
}

#[test]
fn without_ipv6_only_ipv4_goes_to_the_proxy() {
    with_namespaces("without_ipv6_only_ipv4_goes_to_the_proxy", || {
        let pod = Pod::new();
        let proxy = Proxy::new(&pod);
        apply(&pod, &Plan { ipv6: false, ..plan() });
        let [v4, v6] = to_outside(9000);
        let server = pod.outside.listen(&v6);
        let mut client = pod.inside.connect(&v6).expect("connected");
        echo(&mut client, &mut accept(&server));
        let _client = pod.inside.connect(&v4).expect("connected");
        assert_eq!(original_destination(&accept(&proxy.outbound[0])), v4);
        let [v4, v6] = to_pod(8080);
        assert!(refused(pod.outside.connect(&v6)));
        let _client = pod.outside.connect(&v4).expect("connected");
        assert_eq!(original_destination(&accept(&proxy.inbound[0])), v4);
    });
}

#[test]
fn a_new_plan_replaces_the_old_one_and_connections_live_on() {
    with_namespaces("a_new_plan_replaces_the_old_one_and_connections_live_on", || {
        let pod = Pod::new();
        let proxy = Proxy::new(&pod);
        apply(&pod, &plan());
        let mut client = pod.inside.connect("10.1.0.1:9000").expect("connected");
        let mut accepted = accept(&proxy.outbound[0]);
        let other = Plan { skip_outbound: parse_ports("9000").expect("valid"), ..plan() };
        for plan in [&plan(), &other, &other] {
            apply(&pod, plan);
            assert_eq!(pod.inside.run(Plan::list).expect("listed"), Some(plan.table()));
            echo(&mut client, &mut accepted);
        }
        for _again in 0..2 {
            remove(&pod);
            assert_eq!(pod.inside.run(Plan::list).expect("listed"), None);
        }
    });
}

#[test]
fn the_rules_hold_for_an_ordinary_user() {
    as_an_ordinary_user(&[
        "inbound_connections_land_in_the_proxy_with_their_original_destination",
        "outbound_connections_land_in_the_proxy_with_their_original_destination",
        "skipped_ports_and_the_proxys_own_are_reached_directly",
        "a_connection_to_the_inbound_port_itself_reaches_it",
        "marked_sockets_are_exempt_and_others_are_not",
        "the_proxys_uid_is_exempt_and_another_is_not",
        "skipped_networks_are_reached_directly_and_others_are_not",
        "loopback_the_pods_own_address_and_udp_are_left_alone",
        "without_ipv6_only_ipv4_goes_to_the_proxy",
        "a_new_plan_replaces_the_old_one_and_connections_live_on",
    ]);
}
