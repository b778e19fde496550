//! Pods reach each other through the mesh's own namespace, by both families, and nothing else is reached.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use ringmail_local::sandbox::PodSandbox;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use crate::world::{Case, GATEWAY, GATEWAY_6, World, inside, until};

pub(crate) fn cases() -> Vec<Case> {
    inside![
        pods_reach_each_other_and_see_each_others_addresses,
        the_daemon_speaks_as_the_gateway_and_can_dial_from_inside,
        a_destroyed_pod_leaves_no_link_and_its_address_can_be_used_again,
        the_daemon_can_have_further_addresses,
        an_address_without_a_gateway_is_refused,
        the_machines_network_is_out_of_reach,
    ]
}

async fn server(world: &World) -> PodSandbox {
    let pod = world.pod().await;
    world.start(&pod, world.probe(&["serve", "8080", "you"])).await;
    until("the server listens", async || pod.dial(([127, 0, 0, 1], 8080).into()).await.is_ok()).await;
    pod
}

async fn ask(mut stream: TcpStream) -> String {
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

async fn pods_reach_each_other_and_see_each_others_addresses(world: World) {
    let (server, client) = (server(&world).await, world.pod().await);
    for (to, from) in server.addresses().iter().zip(client.addresses()) {
        let address = SocketAddr::new(*to, 8080).to_string();
        let answer = world.output(&client, world.probe(&["ask", &address])).await;
        assert_eq!(answer, format!("you {from}"));
    }
}

async fn the_daemon_speaks_as_the_gateway_and_can_dial_from_inside(world: World) {
    let server = server(&world).await;
    for (address, gateway) in server.addresses().iter().zip([GATEWAY, GATEWAY_6]) {
        let stream = TcpStream::connect((*address, 8080)).await.unwrap();
        assert_eq!(ask(stream).await, format!("you {gateway}"));
    }
    let stream = server.dial(([127, 0, 0, 1], 8080).into()).await.unwrap();
    assert_eq!(ask(stream).await, "you 127.0.0.1");
    // Its loopback is its own.
    assert!(TcpStream::connect(("127.0.0.1", 8080)).await.is_err());
}

async fn a_destroyed_pod_leaves_no_link_and_its_address_can_be_used_again(world: World) {
    let first = server(&world).await;
    let links = || {
        let entries = std::fs::read_to_string("/proc/net/dev").unwrap();
        entries.lines().filter(|line| line.trim_start().starts_with("rm")).count()
    };
    assert_eq!(links(), 1);
    let addresses = first.addresses().to_vec();
    first.destroy().await.unwrap();
    first.destroy().await.unwrap();
    assert_eq!(links(), 0);
    let error = first.start(world.sh("true"), crate::world::captured().0).await.unwrap_err();
    assert_eq!(error.code(), "RM1511", "{error}");

    let second = PodSandbox::create(&world.network, &world.facts, "test/again", &addresses).await.unwrap();
    let server = world.start(&second, world.probe(&["serve", "8080", "again"])).await;
    until("it listens", async || TcpStream::connect((addresses[0], 8080)).await.is_ok()).await;
    assert_eq!(server.exit(), None);
}

async fn the_daemon_can_have_further_addresses(world: World) {
    let pod = world.pod().await;
    let address: IpAddr = Ipv4Addr::new(10, 143, 0, 10).into();
    world.network.add_address(address).await.unwrap();
    let listener = tokio::net::TcpListener::bind((address, 53)).await.unwrap();
    let accepted = tokio::spawn(async move { listener.accept().await.unwrap().1 });
    let (_, exit) = world.run(&pod, world.probe(&["ask", "10.143.0.10:53"])).await;
    assert_eq!(exit.code, 0);
    assert_eq!(accepted.await.unwrap().ip(), pod.addresses()[0]);
    world.network.remove_address(address).await.unwrap();
    assert_eq!(world.network.remove_address(address).await.unwrap_err().code(), "RM1505");
    let (_, exit) = world.run(&pod, world.probe(&["ask", "10.143.0.10:53"])).await;
    assert_eq!(exit.code, 3);
}

async fn an_address_without_a_gateway_is_refused(world: World) {
    let pod = world.pod().await;
    let taken = [pod.addresses()[0], pod.addresses()[0]];
    let error = PodSandbox::create(&world.network, &world.facts, "test/twice", &taken).await.unwrap_err();
    assert_eq!(error.code(), "RM1505");
}

async fn the_machines_network_is_out_of_reach(world: World) {
    let pod = world.pod().await;
    let (output, exit) = world.run(&pod, world.probe(&["ask", "192.0.2.1:80"])).await;
    assert_eq!(exit.code, 3);
    assert!(output.contains("unreachable"), "{output}");
}
