//! The programs, started as they are and talking to each other over loopback.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use ballot::health_proto::HealthCheckRequest;
use ballot::health_proto::health_client::HealthClient;

const DEADLINE: Duration = Duration::from_secs(20);

/// A program that ends with the test.
struct Program {
    child: Child,
    port: u16,
    lines: Receiver<String>,
}

impl Program {
    /// Starts it on a port of the system's choice, and waits until it says which.
    fn start(path: &str, environment: &[(&str, String)]) -> Self {
        let mut command = Command::new(path);
        command.env("PORT", "0").envs(environment.iter().cloned()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let output = child.stdout.take().expect("its output is piped");
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                let _ = sender.send(line);
            }
        });
        let first = lines.recv_timeout(DEADLINE).expect("a first line");
        let address = first.split([' ', ',']).find_map(|word| word.parse::<SocketAddr>().ok());
        Self { child, port: address.unwrap_or_else(|| panic!("no address in `{first}`")).port(), lines }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Asks it to end by SIGTERM; gives its exit code and what it printed last.
    fn terminate(&mut self) -> (Option<i32>, Option<String>) {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().expect("kill runs").success());
        let deadline = Instant::now() + DEADLINE;
        let status = loop {
            match self.child.try_wait().expect("its state") {
                Some(status) => break status,
                None => assert!(Instant::now() < deadline, "it did not end at SIGTERM"),
            }
            std::thread::yield_now();
        };
        (status.code(), self.lines.iter().last())
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Status and body of a GET, over a connection of its own.
fn get(port: u16, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n").expect("it reads");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("it answers");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    (status, body.to_owned())
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn backends() -> (Program, Program) {
    let nonce = |word: &str| [("BALLOT_NONCE", word.to_owned())];
    (
        Program::start(env!("CARGO_BIN_EXE_emoji"), &nonce("from-emoji")),
        Program::start(env!("CARGO_BIN_EXE_voting"), &nonce("from-voting")),
    )
}

fn web(emoji: &str, voting: &str) -> Program {
    let environment = [
        ("EMOJI_ADDR", emoji.to_owned()),
        ("VOTING_ADDR", voting.to_owned()),
        ("BALLOT_NONCE", "from-web".to_owned()),
    ];
    Program::start(env!("CARGO_BIN_EXE_web"), &environment)
}

#[test]
fn votes_travel_through_all_programs_and_one_candidate_always_fails() {
    let (emoji, voting) = backends();
    let web = web(&emoji.address(), &voting.address());
    until("web is ready", || get(web.port, "/readyz").0 == 200);
    assert_eq!(get(web.port, "/healthz"), (200, "ok\n".to_owned()));
    assert!(get(web.port, "/").1.contains("<title>Ballot</title>"));
    let (status, list) = get(web.port, "/api/list");
    assert!(
        status == 200
            && list.contains(r#""shortcode":":taco:","character":"🌮""#)
            && list.contains(r#""nonce":"from-web""#)
    );
    let vote = get(web.port, "/api/vote?choice=:taco:&nonce=anything");
    assert_eq!(
        vote,
        (200, r#"{"shortcode":":taco:","character":"🌮","votes":1,"nonce":"from-web"}"#.to_owned())
    );
    let failure = get(web.port, "/api/vote?choice=:doughnut:");
    assert_eq!(failure, (500, r#"{"error":"the counter is full of crumbs"}"#.to_owned()));
    assert_eq!(get(web.port, "/api/vote?choice=:nobody:").0, 404);
    assert_eq!(get(web.port, "/api/vote").0, 400);
    assert!(
        get(web.port, "/api/leaderboard").1.contains(r#""standings":[{"shortcode":":taco:","votes":1}]"#)
    );
}

#[test]
fn web_is_ready_only_once_its_backends_answer_and_reconnects_when_they_return() {
    let (emoji, mut voting) = backends();
    let absent = web(&emoji.address(), "127.0.0.1:1");
    assert_eq!(get(absent.port, "/readyz").0, 503);
    assert_eq!(get(absent.port, "/api/leaderboard").0, 503);
    let web = web(&emoji.address(), &voting.address());
    until("web is ready", || get(web.port, "/readyz").0 == 200);
    assert_eq!(voting.terminate().0, Some(0), "with web's connection open");
    until("the loss is noticed", || get(web.port, "/api/leaderboard").0 == 503);
    let _again = Program::start(env!("CARGO_BIN_EXE_voting"), &[("PORT", voting.port.to_string())]);
    until("web reconnects", || get(web.port, "/api/leaderboard").0 == 200);
}

#[test]
fn the_bot_keeps_asking_and_counts_the_answers() {
    let (emoji, voting) = backends();
    let web = web(&emoji.address(), &voting.address());
    until("web is ready", || get(web.port, "/readyz").0 == 200);
    let environment =
        [("WEB_ADDR", web.address()), ("RATE", "500".to_owned()), ("BALLOT_NONCE", "from-bot".to_owned())];
    let mut bot = Program::start(env!("CARGO_BIN_EXE_vote-bot"), &environment);
    until("votes arrive", || get(web.port, "/api/leaderboard").1.contains("votes"));
    assert_eq!(get(bot.port, "/healthz"), (200, "ok\n".to_owned()));
    let (code, last) = bot.terminate();
    let answers = last.and_then(|line| line.split(' ').find_map(|word| word.parse::<u64>().ok()));
    assert_eq!(code, Some(0));
    assert!(answers.is_some_and(|answers| answers > 0), "{answers:?}");
}

#[test]
fn every_program_ends_at_sigterm() {
    let (mut emoji, mut voting) = backends();
    let mut web = web(&emoji.address(), &voting.address());
    for program in [&mut web, &mut emoji, &mut voting] {
        assert_eq!(program.terminate().0, Some(0));
    }
}

#[tokio::test]
async fn a_stream_that_a_client_keeps_open_does_not_keep_a_program_from_ending() {
    let (mut emoji, _voting) = backends();
    let mut client = HealthClient::connect(format!("http://{}", emoji.address())).await.expect("it listens");
    let mut states = client.watch(HealthCheckRequest::default()).await.expect("a stream").into_inner();
    states.message().await.expect("a message").expect("a first state");
    assert_eq!(emoji.terminate().0, Some(0));
}

#[tokio::test]
async fn the_grpc_servers_answer_grpc_probes() {
    let (emoji, voting) = backends();
    for (program, service) in [(&emoji, "ballot.v1.Emojis"), (&voting, "ballot.v1.Votes")] {
        let mut client =
            HealthClient::connect(format!("http://{}", program.address())).await.expect("it listens");
        for name in ["", service] {
            let request = HealthCheckRequest { service: name.to_owned() };
            let status = client.check(request.clone()).await.expect("a state").into_inner().status();
            assert_eq!(status.as_str_name(), "SERVING");
            let mut states = client.watch(request).await.expect("a stream").into_inner();
            let first = states.message().await.expect("a message").expect("a first state");
            assert_eq!(first.status().as_str_name(), "SERVING");
        }
        let unknown = client
            .check(HealthCheckRequest { service: "other".to_owned() })
            .await
            .expect_err("no such service");
        assert_eq!(unknown.code(), tonic::Code::NotFound);
    }
}

#[test]
fn settings_that_make_no_sense_are_refused_with_their_name() {
    for (path, name, value) in [
        (env!("CARGO_BIN_EXE_web"), "EMOJI_ADDR", "no-port"),
        (env!("CARGO_BIN_EXE_web"), "PORT", "many"),
        (env!("CARGO_BIN_EXE_vote-bot"), "RATE", "fast"),
        (env!("CARGO_BIN_EXE_vote-bot"), "MIX", "nap"),
    ] {
        let output = Command::new(path).env(name, value).output().expect("the program starts");
        assert!(!output.status.success());
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(error.contains(name) && error.contains(value), "{error}");
    }
}
