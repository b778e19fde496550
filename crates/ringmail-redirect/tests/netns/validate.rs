//! The proof before the application starts, and each way in which it fails.

use std::net::SocketAddr;
use std::time::Duration;

use crate::common::{Namespace, Pod, as_an_ordinary_user, with_namespaces};
use ringmail_redirect::init::{InitArgs, Ports, run};
use ringmail_redirect::{Absence, PROXY_MARK, Plan, Proof, RedirectError, Validation, parse_ports, validate};

fn plan() -> Plan {
    Plan { exempt_mark: Some(PROXY_MARK), ..Plan::default() }
}

fn prove(namespace: &Namespace, plan: &Plan) -> Result<Validation, RedirectError> {
    namespace.run(|| {
        plan.apply()?;
        validate(plan, Duration::from_millis(500))
    })
}

fn proof(target: &str, proxy: &str) -> Proof {
    let read = |text: &str| text.parse::<SocketAddr>().expect("an address");
    Proof { target: read(target), proxy: read(proxy) }
}

#[test]
fn a_redirection_that_works_is_proven_with_both_families() {
    with_namespaces("a_redirection_that_works_is_proven_with_both_families", || {
        let pod = Pod::new();
        let both = prove(&pod.inside, &plan()).expect("proven");
        assert_eq!(both.ipv4, Ok(proof("192.0.2.1:65535", "127.0.0.1:4140")));
        assert_eq!(both.ipv6, Ok(proof("[2001:db8::1]:65535", "[::1]:4140")));
        let one = prove(&pod.inside, &Plan { ipv6: false, ..plan() }).expect("proven");
        assert_eq!(one.ipv6, Err(Absence::NotPlanned));
        // What the plan leaves alone cannot prove it, so something else is taken.
        let skip = Plan {
            skip_outbound: parse_ports("60000-65535").expect("valid"),
            skip_destinations: vec!["192.0.2.0/24".parse().expect("a network")],
            outbound_port: 5140,
            ..plan()
        };
        let other = prove(&pod.inside, &skip).expect("proven");
        assert_eq!(other.ipv4, Ok(proof("198.51.100.1:59999", "127.0.0.1:5140")));
    });
}

#[test]
fn without_a_default_route_the_pods_own_link_serves() {
    with_namespaces("without_a_default_route_the_pods_own_link_serves", || {
        let pod = Pod::without_routes();
        let both = prove(&pod.inside, &plan()).expect("proven");
        assert_eq!(both.ipv4, Ok(proof("10.1.0.254:65535", "127.0.0.1:4140")));
        assert_eq!(both.ipv6, Ok(proof("[fd00:1::ffff:ffff:ffff:fffe]:65535", "[::1]:4140")));
        // A pod of the local mesh: one address, a gateway on the link, routes by way of it.
        let (routed, outside) = (Namespace::new(), Namespace::new());
        outside.link("pod", &routed);
        routed.ip("addr add 10.142.0.5/32 dev eth0");
        routed.ip("route add 10.142.0.1/32 dev eth0");
        routed.ip("route add 10.0.0.0/8 via 10.142.0.1");
        let proven = prove(&routed, &plan()).expect("proven");
        assert_eq!((proven.ipv4.is_ok(), proven.ipv6), (true, Err(Absence::NoRoute)));
    });
}

#[test]
fn a_pod_without_any_route_cannot_be_proven_and_is_told_so() {
    with_namespaces("a_pod_without_any_route_cannot_be_proven_and_is_told_so", || {
        let namespace = Namespace::new();
        let error = prove(&namespace, &plan()).expect_err("refused");
        assert_eq!(error.code(), "RM1310");
        assert!(error.to_string().contains("IPv4: no route leads out"), "{error}");
        namespace.ip("link set lo down");
        let error = prove(&namespace, &plan()).expect_err("refused").to_string();
        assert!(error.contains("IPv6: off in this network namespace"), "{error}");
    });
}

#[test]
fn without_rules_the_missing_table_is_named() {
    with_namespaces("without_rules_the_missing_table_is_named", || {
        let pod = Pod::new();
        let error = pod.inside.run(|| validate(&plan(), Duration::from_millis(500))).expect_err("refused");
        assert!(error.code() == "RM1306" && error.to_string().contains("is missing"), "{error}");
    });
}

#[test]
fn a_taken_port_is_named() {
    with_namespaces("a_taken_port_is_named", || {
        let pod = Pod::new();
        let taken = pod.inside.listen("127.0.0.1:4140");
        let error = prove(&pod.inside, &plan()).expect_err("refused");
        assert!(error.code() == "RM1307" && error.to_string().contains("127.0.0.1:4140"), "{error}");
        drop(taken);
        prove(&pod.inside, &plan()).expect("proven");
    });
}

#[test]
fn rules_of_somebody_else_that_act_first_are_found_out() {
    with_namespaces("rules_of_somebody_else_that_act_first_are_found_out", || {
        let pod = Pod::new();
        let chain = |rule: &str| {
            let table = "table inet other { chain output { type nat hook output priority -150;";
            pod.inside
                .nft_script(&format!("table inet other\ndelete table inet other\n{table} {rule}; }}; }}"));
            prove(&pod.inside, &plan())
        };
        let _listener = pod.inside.listen("127.0.0.1:9999");
        let elsewhere = chain("tcp dport 65535 redirect to :9999").expect_err("refused");
        assert!(
            elsewhere.code() == "RM1308" && elsewhere.to_string().contains("something else"),
            "{elsewhere}"
        );
        let refused = chain("tcp dport 65535 redirect to :9998").expect_err("refused");
        assert!(refused.code() == "RM1308" && refused.to_string().contains("refused"), "{refused}");
        let away = chain("tcp dport 65535 dnat ip to 10.1.0.77:80").expect_err("refused");
        assert!(away.code() == "RM1308" && away.to_string().contains("nothing answered"), "{away}");
        chain("tcp dport 1 redirect to :9999").expect("proven");
    });
}

#[test]
fn the_exempt_user_cannot_prove_anything() {
    with_namespaces("the_exempt_user_cannot_prove_anything", || {
        let pod = Pod::new();
        let uid = nix::unistd::geteuid().as_raw();
        // Root may not be exempt; the ordinary user's run of this test has the uid 2102.
        let expected = if uid == 0 { "RM1300" } else { "RM1311" };
        let error = prove(&pod.inside, &Plan { exempt_uid: Some(uid), ..plan() }).expect_err("refused");
        assert_eq!(error.code(), expected);
        prove(&pod.inside, &Plan { exempt_uid: Some(uid + 1), ..plan() }).expect("proven");
    });
}

#[test]
fn the_init_command_sets_the_rules_and_says_what_it_proved() {
    with_namespaces("the_init_command_sets_the_rules_and_says_what_it_proved", || {
        let pod = Pod::new();
        let args = InitArgs {
            incoming_proxy_port: 4143,
            outgoing_proxy_port: 4140,
            proxy_uid: None,
            proxy_mark: Some(PROXY_MARK),
            inbound_ports_to_ignore: Ports(parse_ports("4190,4191").expect("valid")),
            outbound_ports_to_ignore: Ports::default(),
            subnets_to_ignore: Vec::new(),
            outbound_subnets_to_ignore: Vec::new(),
            ipv6: true,
            dry_run: true,
            no_validate: false,
        };
        let print = |args: &InitArgs| {
            let mut out = Vec::new();
            pod.inside.run(|| run(args, &mut out)).map(|()| String::from_utf8(out).expect("text"))
        };
        let script = print(&args).expect("printed");
        assert_eq!(pod.inside.run(Plan::list).expect("listed"), None);
        let said = print(&InitArgs { dry_run: false, ..args.clone() }).expect("done");
        assert_eq!(
            said,
            "7 rules are in place in table `inet ringmail`\n\
             IPv4: a connection to 192.0.2.1:65535 lands in the proxy at 127.0.0.1:4140\n\
             IPv6: a connection to [2001:db8::1]:65535 lands in the proxy at [::1]:4140\n"
        );
        // The printed script replaces the table by the same.
        pod.inside.nft_script(&script);
        pod.inside.run(|| args.plan().compare()).expect("the same");
        let taken = pod.inside.listen("[::1]:4140");
        let args = InitArgs { dry_run: false, ..args };
        assert_eq!(print(&args).expect_err("refused").code(), "RM1307");
        assert!(!print(&InitArgs { no_validate: true, ..args }).expect("done").contains("IPv4"));
        drop(taken);
    });
}

#[test]
fn the_same_holds_for_an_ordinary_user() {
    as_an_ordinary_user(&[
        "a_redirection_that_works_is_proven_with_both_families",
        "without_a_default_route_the_pods_own_link_serves",
        "rules_of_somebody_else_that_act_first_are_found_out",
        "the_exempt_user_cannot_prove_anything",
        "the_init_command_sets_the_rules_and_says_what_it_proved",
    ]);
}
