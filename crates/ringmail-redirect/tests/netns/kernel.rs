//! What we write, what the kernel holds and what `nft` reads and prints are the same rules.

use std::net::SocketAddr;

use crate::common::{Namespace, Pod, as_an_ordinary_user, with_namespaces};
use ringmail_redirect::services::{self, Service, ServiceMap};
use ringmail_redirect::{PROXY_MARK, Plan, Protocol, parse_ports};

fn plans() -> Vec<Plan> {
    let plain = Plan { exempt_mark: Some(PROXY_MARK), ..Plan::default() };
    let full = Plan {
        exempt_uid: Some(2102),
        skip_inbound: parse_ports("4190,4191,5000-5010").expect("valid"),
        skip_outbound: parse_ports("25,3306-3310").expect("valid"),
        skip_sources: ["10.0.0.0/8", "172.16.0.0/12", "1.2.3.4/32", "fd00::/8", "fd00:1::/63", "::1/128"]
            .map(|net| net.parse().expect("a network"))
            .to_vec(),
        skip_destinations: vec!["192.168.4.0/22".parse().expect("a network")],
        ipv6: false,
        ..plain.clone()
    };
    vec![plain, full]
}

fn map() -> ServiceMap {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address");
    let service = |at: &str, protocol, ends: &[&str]| Service {
        address: address(at),
        protocol,
        endpoints: ends.iter().map(|end| address(end)).collect(),
    };
    ServiceMap {
        services: vec![
            service(
                "10.143.0.3:80",
                Protocol::Tcp,
                &["10.142.0.5:8080", "10.142.0.6:8081", "10.142.0.7:8080"],
            ),
            service("10.143.0.3:81", Protocol::Tcp, &[]),
            service("10.143.0.3:53", Protocol::Udp, &["10.142.0.5:53"]),
            service("[fd00:143::3]:80", Protocol::Tcp, &["[fd00:142::5]:8080", "[fd00:142::6]:8080"]),
        ],
    }
}

#[test]
fn the_kernel_holds_what_was_planned_and_nft_prints_the_same_text() {
    with_namespaces("the_kernel_holds_what_was_planned_and_nft_prints_the_same_text", || {
        let namespace = Namespace::new();
        for plan in plans() {
            namespace.run(|| plan.apply()).expect("applied");
            assert_eq!(namespace.run(Plan::list).expect("listed"), Some(plan.table()));
            assert_eq!(namespace.nft("list table inet ringmail"), plan.to_nft());
        }
        let map = map();
        namespace.run(|| services::apply(&map)).expect("applied");
        assert_eq!(namespace.run(services::list).expect("listed"), Some(map.table()));
        assert_eq!(namespace.nft("list table inet ringmail-services"), map.table().to_string());
    });
}

#[test]
fn nft_reads_the_text_and_makes_the_same_rules() {
    with_namespaces("nft_reads_the_text_and_makes_the_same_rules", || {
        let namespace = Namespace::new();
        for plan in plans() {
            namespace.run(Plan::remove).expect("removed");
            namespace.nft_script(&plan.to_nft());
            assert_eq!(
                namespace.run(Plan::list).expect("listed").map(|t| t.to_string()),
                Some(plan.to_nft())
            );
            namespace.run(|| plan.compare()).expect("the same");
        }
    });
}

#[test]
fn a_change_by_somebody_else_is_noticed() {
    with_namespaces("a_change_by_somebody_else_is_noticed", || {
        let namespace = Namespace::new();
        let plan = &plans()[0];
        let changed = |line: &str| {
            namespace.run(|| plan.apply()).expect("applied");
            namespace.run(|| plan.compare()).expect("the same");
            namespace.nft(line);
            namespace.run(|| plan.compare()).expect_err(line).to_string()
        };
        let extra = changed("add rule inet ringmail output tcp dport 81 return");
        assert!(extra.contains("RM1306") && extra.contains("also has `tcp dport 81 return`"), "{extra}");
        let first = changed("insert rule inet ringmail prerouting tcp dport 81 return");
        assert!(
            first.contains("should have `iifname \"lo\" return` where it has `tcp dport 81 return`"),
            "{first}"
        );
        assert!(changed("flush chain inet ringmail output").contains("where it has `nothing`"));
        assert!(changed("add chain inet ringmail more").contains("chain `more` was added"));
        assert!(changed("delete table inet ringmail").contains("table `inet ringmail` is missing"));
        assert!(changed("add rule inet ringmail output ip ttl 3 drop").contains("not made by this program"));
    });
}

#[test]
fn other_tables_stay_as_they_are() {
    with_namespaces("other_tables_stay_as_they_are", || {
        let namespace = Namespace::new();
        namespace.nft_script(
            "table inet other { chain c { type filter hook input priority 0; tcp dport 1 drop; }; }",
        );
        namespace.nft_script("table ip ringmail { chain c { tcp dport 1 drop; }; }");
        let (other, same_name) = ("list table inet other", "list table ip ringmail");
        let before = [namespace.nft(other), namespace.nft(same_name)];
        namespace.run(|| plans()[1].apply()).expect("applied");
        namespace.run(|| services::apply(&map())).expect("applied");
        namespace.run(Plan::remove).expect("removed");
        namespace.run(services::remove).expect("removed");
        assert_eq!([namespace.nft(other), namespace.nft(same_name)], before);
    });
}

#[test]
fn without_the_capability_the_refusal_names_it_and_with_it_there_is_none() {
    with_namespaces("without_the_capability_the_refusal_names_it_and_with_it_there_is_none", || {
        let pod = Pod::new();
        let plan = &plans()[0];
        let error = pod.inside.run(|| {
            caps::drop(None, caps::CapSet::Effective, caps::Capability::CAP_NET_ADMIN).expect("dropped");
            [plan.apply().expect_err("refused"), Plan::list().expect_err("refused")]
        });
        for error in error {
            assert!(error.code() == "RM1302" && error.to_string().contains("CAP_NET_ADMIN"), "{error}");
        }
        pod.inside.run(|| plan.apply()).expect("applied");
    });
}

#[test]
fn a_large_map_is_applied_whole_or_refused_whole() {
    with_namespaces("a_large_map_is_applied_whole_or_refused_whole", || {
        let namespace = Namespace::new();
        let map = map();
        namespace.run(|| services::apply(&map)).expect("applied");
        // More than an ordinary user's socket can send at once.
        let many = (0..40_000_u32).map(|n| SocketAddr::from(((0x0a00_0000 + n).to_be_bytes(), 80))).collect();
        let large = ServiceMap { services: vec![Service { endpoints: many, ..map.services[0].clone() }] };
        let result = namespace.run(|| services::apply(&large));
        match result {
            // Root may raise the limit.
            Ok(()) => assert_eq!(namespace.run(services::list).expect("listed"), Some(large.table())),
            Err(error) => {
                assert_eq!(error.code(), "RM1313", "{error}");
                assert_eq!(namespace.run(services::list).expect("listed"), Some(map.table()));
            }
        }
    });
}

#[test]
fn the_same_holds_for_an_ordinary_user() {
    as_an_ordinary_user(&[
        "the_kernel_holds_what_was_planned_and_nft_prints_the_same_text",
        "nft_reads_the_text_and_makes_the_same_rules",
        "a_change_by_somebody_else_is_noticed",
        "without_the_capability_the_refusal_names_it_and_with_it_there_is_none",
        "a_large_map_is_applied_whole_or_refused_whole",
    ]);
}
