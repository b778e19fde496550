//! The control socket's server.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;

use crate::daemon::{CLOSE_GRACE, status};
use crate::engine::Engine;
use crate::problem::{Problem, Problems};
use crate::protocol::{
    self, ExecRequest, Frame, LogRequest, Published, Request, Response, Status, read_frame, write_frame,
};
use crate::sandbox::ExecSpec;

/// What is served.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) engine: Arc<Engine>,
    pub(crate) name: String,
    pub(crate) rootless: bool,
    pub(crate) published: Vec<Published>,
    /// Set when the mesh is to end.
    pub(crate) end: watch::Sender<bool>,
}

impl Served {
    pub(crate) fn status(&self) -> Status {
        status(&self.engine, &self.name, self.rootless, &self.published)
    }
}

/// Serves the control socket in the background.
pub(crate) fn serve(listener: OwnedFd, served: Arc<Served>) -> io::Result<()> {
    let listener = std::os::unix::net::UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    tokio::spawn(async move {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => {
                    let served = served.clone();
                    tokio::spawn(async move {
                        if let Err(error) = converse(stream, &served).await {
                            tracing::debug!(%error, "a conversation on the control socket");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "accepting on the control socket");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    });
    Ok(())
}

/// Whether a peer may ask. The socket's directory keeps other users out; this keeps the mesh's own pods out, should one ever come to
/// hold a way to the socket: processes of the mesh have a pid in here, those of the machine have none.
pub(crate) fn may_ask(peer: Option<i32>) -> bool {
    peer.is_none_or(|pid| pid == 0)
}

async fn converse(mut stream: UnixStream, served: &Arc<Served>) -> io::Result<()> {
    if !may_ask(stream.peer_cred()?.pid()) {
        let problem =
            Problem::new("RM1568", "control socket", "a process of the mesh itself may not ask", "");
        return protocol::send(&mut stream, &Response::Failed(problem.into())).await;
    }
    let first = tokio::time::timeout(Duration::from_secs(10), protocol::receive(&mut stream));
    let Some(request) = first.await.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?? else {
        return Ok(());
    };
    let engine = &served.engine;
    let answer = match request {
        Request::Status => Ok(Response::Status(served.status())),
        Request::Apply { documents, skip_kinds, programs } => engine
            .apply(&documents, programs, &skip_kinds, true)
            .map(|(objects, warnings)| Response::Applied { objects, warnings }),
        Request::Delete { objects, ignore_missing } => {
            engine.delete(&objects, ignore_missing).map(Response::Deleted)
        }
        Request::Pods { namespace } => Ok(Response::Pods(engine.pods(namespace.as_deref()))),
        Request::Logs(request) => return logs(stream, engine, request).await,
        Request::Exec(request) => return exec(stream, engine, request).await,
        Request::Dial { namespace, target, port } => {
            return dial(stream, engine, &namespace, &target, port).await;
        }
        Request::Events { follow } => return events(stream, engine, follow).await,
        Request::Wait { timeout } => return wait(stream, engine, Duration::from_secs(timeout)).await,
        Request::Down => {
            engine.close(CLOSE_GRACE).await;
            protocol::send(&mut stream, &Response::Done).await?;
            served.end.send_replace(true);
            return Ok(());
        }
    };
    protocol::send(&mut stream, &answer.unwrap_or_else(Response::Failed)).await
}

async fn refuse(stream: &mut UnixStream, problem: Problem) -> io::Result<()> {
    protocol::send(stream, &Response::Failed(Problems::from(problem))).await
}

async fn logs(mut stream: UnixStream, engine: &Engine, request: LogRequest) -> io::Result<()> {
    let LogRequest { namespace, target, container, all_containers, follow, tail, previous } = request;
    let found = engine.find_logs(&namespace, &target, container.as_deref(), all_containers, previous);
    let logs = match found {
        Ok(logs) => logs,
        Err(problem) => return refuse(&mut stream, problem).await,
    };
    if !follow {
        for log in logs {
            for line in log.log.lines(tail) {
                let (pod, container) = (log.pod.clone(), log.container.clone());
                protocol::send(&mut stream, &Response::Log { pod, container, line: line.to_string() })
                    .await?;
            }
        }
        return protocol::send(&mut stream, &Response::Done).await;
    }
    let (lines, mut received) = tokio::sync::mpsc::channel(64);
    for log in logs {
        let lines = lines.clone();
        tokio::spawn(async move {
            let mut follower = log.log.follow(tail);
            while let Some(new) = follower.next().await {
                for line in new {
                    let (pod, container) = (log.pod.clone(), log.container.clone());
                    if lines.send(Response::Log { pod, container, line: line.to_string() }).await.is_err() {
                        return;
                    }
                }
            }
        });
    }
    drop(lines);
    let (mut reader, mut writer) = stream.into_split();
    loop {
        tokio::select! {
            response = received.recv() => match response {
                Some(response) => protocol::send(&mut writer, &response).await?,
                None => return protocol::send(&mut writer, &Response::Done).await,
            },
            // The client says nothing more: its end is all that can come.
            _ = reader.read_u8() => return Ok(()),
        }
    }
}

async fn events(stream: UnixStream, engine: &Engine, follow: bool) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let mut watch = engine.events().watch();
    let mut next = 0;
    loop {
        watch.borrow_and_update();
        let (new, after) = engine.events().since(next);
        next = after;
        for event in new {
            protocol::send(&mut writer, &Response::Event(event)).await?;
        }
        if !follow {
            return protocol::send(&mut writer, &Response::Done).await;
        }
        tokio::select! {
            changed = watch.changed() => if changed.is_err() { return Ok(()) },
            _ = reader.read_u8() => return Ok(()),
        }
    }
}

async fn wait(stream: UnixStream, engine: &Engine, timeout: Duration) -> io::Result<()> {
    let (mut reader, mut writer) = stream.into_split();
    let mut rounds = engine.rounds();
    let mut watch = engine.events().watch();
    let (_, mut next) = engine.events().since(u64::MAX);
    let deadline = tokio::time::sleep(timeout);
    tokio::pin!(deadline);
    loop {
        rounds.borrow_and_update();
        watch.borrow_and_update();
        let (new, after) = engine.events().since(next);
        next = after;
        for event in new {
            protocol::send(&mut writer, &Response::Event(event)).await?;
        }
        let rollout = engine.rollout();
        if rollout.is_settled() {
            return protocol::send(&mut writer, &Response::Done).await;
        }
        tokio::select! {
            _ = rounds.changed() => {}
            _ = watch.changed() => {}
            () = &mut deadline => {
                let failed = Response::Failed(rollout.problem(timeout).into());
                return protocol::send(&mut writer, &failed).await;
            }
            _ = reader.read_u8() => return Ok(()),
        }
    }
}

async fn dial(
    mut stream: UnixStream,
    engine: &Engine,
    namespace: &str,
    target: &str,
    port: u16,
) -> io::Result<()> {
    let found = match engine.find_pod(namespace, target, port) {
        Ok(found) => found,
        Err(problem) => return refuse(&mut stream, problem).await,
    };
    let failed = |why: String| {
        Problem::new(
            "RM1569",
            "",
            format!("pod/{} in {namespace}: port {}: {why}", found.pod, found.port),
            "check the port, and with `ringmail logs` whether the program listens",
        )
    };
    let Some(sandbox) = found.handle.sandbox() else {
        return refuse(&mut stream, failed("the pod has no network".to_owned())).await;
    };
    match sandbox.dial(found.port).await {
        Ok(mut pod) => {
            protocol::send(&mut stream, &Response::Done).await?;
            tokio::io::copy_bidirectional(&mut stream, &mut pod).await?;
            Ok(())
        }
        Err(error) => refuse(&mut stream, failed(error.to_string())).await,
    }
}

async fn exec(mut stream: UnixStream, engine: &Engine, request: ExecRequest) -> io::Result<()> {
    let ExecRequest { namespace, target, container, command, stdin, terminal } = request;
    let (running, env, name) = match engine.find_container(&namespace, &target, container.as_deref()) {
        Ok(found) => found,
        Err(problem) => return refuse(&mut stream, problem).await,
    };
    let mut env = env;
    if terminal.is_some() && !env.iter().any(|(variable, _)| variable == "TERM") {
        env.push(("TERM".to_owned(), "xterm".to_owned()));
    }
    let mut handle = match running.exec(ExecSpec { argv: command, env, cwd: None }, terminal).await {
        Ok(handle) => handle,
        Err(error) => {
            let problem = Problem::new("RM1570", "", format!("{target}, container {name}: {error}"), "");
            return refuse(&mut stream, problem).await;
        }
    };
    protocol::send(&mut stream, &Response::Done).await?;
    let (mut reader, mut writer) = stream.into_split();
    let mut input = handle.stdin.take();
    if !stdin {
        input = None;
    }
    let resize = handle.resize;
    let incoming = async {
        while let Some((kind, bytes)) = read_frame(&mut reader).await? {
            match kind {
                Frame::Stdin if bytes.is_empty() => input = None,
                Frame::Stdin => {
                    if let Some(stdin) = input.as_mut()
                        && (stdin.write_all(&bytes).await.is_err() || stdin.flush().await.is_err())
                    {
                        // The program does not read any more; its end tells the client.
                        input = None;
                    }
                }
                Frame::Resize if bytes.len() == 4 => {
                    resize(
                        u16::from_be_bytes([bytes[0], bytes[1]]),
                        u16::from_be_bytes([bytes[2], bytes[3]]),
                    );
                }
                _ => return Err(io::Error::from(io::ErrorKind::InvalidData)),
            }
        }
        Ok(())
    };
    let mut out = handle.stdout;
    let mut err = handle.stderr;
    let exit = handle.exit;
    let outgoing = async {
        let (mut from_out, mut from_err) = (vec![0; 16 << 10], vec![0; 16 << 10]);
        let (mut out_open, mut err_open) = (true, err.is_some());
        let mut code = None;
        tokio::pin!(exit);
        while out_open || err_open || code.is_none() {
            tokio::select! {
                read = out.read(&mut from_out), if out_open => {
                    // A terminal whose program has ended fails; that is its end.
                    let length = read.unwrap_or(0);
                    out_open = length > 0;
                    if out_open {
                        write_frame(&mut writer, Frame::Stdout, &from_out[..length]).await?;
                    }
                }
                read = read_some(&mut err, &mut from_err), if err_open => {
                    let length = read.unwrap_or(0);
                    err_open = length > 0;
                    if err_open {
                        write_frame(&mut writer, Frame::Stderr, &from_err[..length]).await?;
                    }
                }
                ended = &mut exit, if code.is_none() => code = Some(ended.code),
                // What it left behind may hold its output open for ever.
                () = tokio::time::sleep(Duration::from_millis(500)), if code.is_some() => break,
            }
        }
        let code = code.unwrap_or(1);
        protocol::send(&mut writer, &Response::Exited { code }).await
    };
    tokio::pin!(incoming, outgoing);
    let result = tokio::select! {
        result = &mut outgoing => result,
        // The client went away, or may have only ended its side: then a program without input would go on alone.
        result = &mut incoming => match result {
            Ok(()) => Err(io::ErrorKind::ConnectionAborted.into()),
            Err(error) => Err(error),
        },
    };
    if result.is_err() {
        (handle.kill)();
    }
    result
}

async fn read_some(
    from: &mut Option<Box<dyn tokio::io::AsyncRead + Send + Unpin>>,
    buffer: &mut [u8],
) -> io::Result<usize> {
    match from {
        Some(from) => from.read(buffer).await,
        None => Ok(0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_of_the_mesh_may_not_ask_and_those_of_the_machine_may() {
        assert!(may_ask(Some(0)));
        assert!(may_ask(None));
        assert!(!may_ask(Some(17)));
    }
}
