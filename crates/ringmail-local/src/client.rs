//! The client of a running mesh.
//!
//! Start here: [`Mesh::find`] picks the mesh, its other functions are what one can ask.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, UnixStream};

use crate::manifest::{Document, ObjectKey};
use crate::problem::{Problem, Problems};
use crate::programs::Programs;
use crate::protocol::{self, Event, ExecRequest, Frame, LogRequest, Request, Response, Status};
use crate::runtime_dir::RuntimeDir;
use crate::store::Applied;

/// Why a mesh could not be asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// No mesh runs.
    #[error("RM1563: no local mesh runs for this user\n  hint: start one with `ringmail up -f FILE`")]
    NoMesh,
    /// The mesh that was named does not run.
    #[error("RM1563: no local mesh `{name}` runs for this user\n  hint: {}", there_is(running))]
    NotRunning {
        /// The name that was given.
        name: String,
        /// Those that run.
        running: Vec<String>,
    },
    /// Several run and none was named.
    #[error("RM1564: several local meshes run: {}\n  hint: choose one with `--mesh NAME` or RINGMAIL_MESH", running.join(", "))]
    Several {
        /// Those that run.
        running: Vec<String>,
    },
    /// The mesh said no.
    #[error("{0}")]
    Refused(#[from] Problems),
    /// The socket failed.
    #[error(
        "RM1565: mesh {mesh}: {what}: {error}\n  hint: `ringmail --mesh {mesh} ps` shows whether it still runs"
    )]
    Socket {
        /// The mesh.
        mesh: String,
        /// What was being done.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// The daemon ended in the middle of an answer, or answered something else.
    #[error(
        "RM1565: mesh {mesh} ended the conversation: {what}\n  hint: it may be ending, or be of another version"
    )]
    Broken {
        /// The mesh.
        mesh: String,
        /// What was expected.
        what: &'static str,
    },
}

/// What an apply did.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Each object and what happened to it.
    pub objects: Vec<(ObjectKey, Applied)>,
    /// What works differently than written.
    pub warnings: Vec<Problem>,
}

/// A running mesh of this user.
#[derive(Clone, Debug)]
pub struct Mesh {
    dir: RuntimeDir,
}

impl Mesh {
    /// The mesh of this name; without one, the only mesh that runs.
    pub fn find(name: Option<&str>) -> Result<Self, ClientError> {
        // An empty RINGMAIL_MESH names none.
        let name = name.filter(|name| !name.is_empty());
        let mut all = Self::all();
        let running = |all: &[Self]| all.iter().map(|m| m.name().to_owned()).collect();
        match name {
            Some(name) => match all.iter().position(|m| m.name() == name) {
                Some(index) => Ok(all.swap_remove(index)),
                None => Err(ClientError::NotRunning { name: name.to_owned(), running: running(&all) }),
            },
            None if all.len() > 1 => Err(ClientError::Several { running: running(&all) }),
            None => all.pop().ok_or(ClientError::NoMesh),
        }
    }

    /// Every mesh of this user that runs. What dead ones left is removed.
    pub fn all() -> Vec<Self> {
        let (alive, dead): (Vec<RuntimeDir>, Vec<RuntimeDir>) =
            RuntimeDir::all().into_iter().partition(RuntimeDir::is_alive);
        for dir in dead {
            dir.clean();
        }
        alive.into_iter().map(|dir| Self { dir }).collect()
    }

    /// The mesh of a directory, whether it listens already or not.
    pub fn in_dir(dir: RuntimeDir) -> Self {
        Self { dir }
    }

    /// Its name.
    pub fn name(&self) -> &str {
        self.dir.name()
    }

    /// How it is doing.
    pub async fn status(&self) -> Result<Status, ClientError> {
        match self.ask(&Request::Status).await?.1 {
            Response::Status(status) => Ok(status),
            _ => Err(self.broken("a status was due")),
        }
    }

    /// Brings objects to what the documents say.
    pub async fn apply(
        &self,
        documents: Vec<Document>,
        programs: Programs,
        skip_kinds: Vec<String>,
    ) -> Result<Outcome, ClientError> {
        match self.ask(&Request::Apply { documents, skip_kinds, programs }).await?.1 {
            Response::Applied { objects, warnings } => Ok(Outcome { objects, warnings }),
            _ => Err(self.broken("the outcome of an apply was due")),
        }
    }

    /// Removes objects; returns those that were there.
    pub async fn delete(
        &self,
        objects: Vec<ObjectKey>,
        ignore_missing: bool,
    ) -> Result<Vec<ObjectKey>, ClientError> {
        match self.ask(&Request::Delete { objects, ignore_missing }).await?.1 {
            Response::Deleted(objects) => Ok(objects),
            _ => Err(self.broken("a list of deleted objects was due")),
        }
    }

    /// Its pods as Kubernetes JSON, of one namespace or all.
    pub async fn pods(&self, namespace: Option<&str>) -> Result<Vec<Value>, ClientError> {
        match self.ask(&Request::Pods { namespace: namespace.map(str::to_owned) }).await?.1 {
            Response::Pods(pods) => Ok(pods),
            _ => Err(self.broken("a list of pods was due")),
        }
    }

    /// Hands each line of output to `line` (pod, container, text) until there are no more.
    pub async fn logs(
        &self,
        request: LogRequest,
        mut line: impl FnMut(&str, &str, &str),
    ) -> Result<(), ClientError> {
        let (mut stream, mut response) = self.ask(&Request::Logs(request)).await?;
        loop {
            match response {
                Response::Log { pod, container, line: text } => line(&pod, &container, &text),
                Response::Done => return Ok(()),
                _ => return Err(self.broken("a line was due")),
            }
            response = self.next(&mut stream).await?;
        }
    }

    /// Hands each event to `event`, from the oldest that is kept; returns when there are no more or `event` says `false`.
    pub async fn events(&self, follow: bool, event: impl FnMut(Event) -> bool) -> Result<(), ClientError> {
        self.event_stream(&Request::Events { follow }, event).await
    }

    /// Waits until every workload is rolled out, and hands the events on the way to `event`.
    pub async fn wait(&self, timeout: Duration, mut event: impl FnMut(Event)) -> Result<(), ClientError> {
        let request = Request::Wait { timeout: timeout.as_secs() };
        let see = |e| {
            event(e);
            true
        };
        self.event_stream(&request, see).await
    }

    /// Runs a program in a container and passes its input and output on. Returns its exit code.
    pub async fn exec(
        &self,
        request: ExecRequest,
        mut input: impl AsyncRead + Unpin,
        mut output: impl AsyncWrite + Unpin,
        mut errors: impl AsyncWrite + Unpin,
        mut resizes: impl FnMut() -> Option<(u16, u16)>,
    ) -> Result<i32, ClientError> {
        let mut with_input = request.stdin;
        let has_terminal = request.terminal.is_some();
        let (stream, response) = self.ask(&Request::Exec(request)).await?;
        if !matches!(response, Response::Done) {
            return Err(self.broken("the start of the program was due"));
        }
        let (mut reader, mut writer) = stream.into_split();
        // Reading frames is not cancel safe, so it has a task of its own.
        let (frames, mut received) = tokio::sync::mpsc::channel(16);
        let reading = tokio::spawn(async move {
            while let Ok(Some(frame)) = protocol::read_frame(&mut reader).await {
                if frames.send(frame).await.is_err() {
                    break;
                }
            }
        });
        let socket = |error| self.socket("passing a program's input and output", error);
        let mut buffer = vec![0; 16 << 10];
        let mut sizes = tokio::time::interval(Duration::from_millis(250));
        let code = loop {
            tokio::select! {
                read = input.read(&mut buffer), if with_input => {
                    let length = read.unwrap_or(0);
                    with_input = length > 0;
                    if protocol::write_frame(&mut writer, Frame::Stdin, &buffer[..length]).await.is_err() {
                        // The program is gone; its exit code is on the way.
                        with_input = false;
                    }
                }
                _ = sizes.tick(), if has_terminal => {
                    if let Some((rows, columns)) = resizes() {
                        let mut size = rows.to_be_bytes().to_vec();
                        size.extend_from_slice(&columns.to_be_bytes());
                        // As above.
                        let _ = protocol::write_frame(&mut writer, Frame::Resize, &size).await;
                    }
                }
                frame = received.recv() => match frame {
                    Some((Frame::Stdout, bytes)) => {
                        output.write_all(&bytes).await.map_err(socket)?;
                        output.flush().await.map_err(socket)?;
                    }
                    Some((Frame::Stderr, bytes)) => {
                        errors.write_all(&bytes).await.map_err(socket)?;
                        errors.flush().await.map_err(socket)?;
                    }
                    Some((Frame::Message, bytes)) => match serde_json::from_slice(&bytes) {
                        Ok(Response::Exited { code }) => break code,
                        Ok(Response::Failed(problems)) => return Err(problems.into()),
                        _ => return Err(self.broken("an exit code was due")),
                    },
                    Some(_) => return Err(self.broken("output was due")),
                    None => return Err(self.broken("an exit code was due")),
                },
            }
        };
        reading.abort();
        Ok(code)
    }

    /// A connection to a port inside a pod, made there to its loopback. `target` is `pod/x`, `deploy/x`, `svc/x`, …; for a
    /// service, `port` is the service's own.
    pub async fn dial_pod(
        &self,
        namespace: &str,
        target: &str,
        port: u16,
    ) -> Result<UnixStream, ClientError> {
        let request = Request::Dial { namespace: namespace.to_owned(), target: target.to_owned(), port };
        match self.ask(&request).await? {
            (stream, Response::Done) => Ok(stream),
            _ => Err(self.broken("a connection was due")),
        }
    }

    /// Accepts connections on `listener` and passes each to a port of a pod. Does not return while the listener works;
    /// `failed` hears of connections that could not be made.
    pub async fn forward(
        &self,
        listener: TcpListener,
        namespace: &str,
        target: &str,
        port: u16,
        failed: impl Fn(SocketAddr, String) + Clone + Send + 'static,
    ) -> Result<(), ClientError> {
        loop {
            let (mut client, peer) =
                listener.accept().await.map_err(|error| self.socket("accepting a connection", error))?;
            let (mesh, namespace, target) = (self.clone(), namespace.to_owned(), target.to_owned());
            let failed = failed.clone();
            tokio::spawn(async move {
                match mesh.dial_pod(&namespace, &target, port).await {
                    Ok(mut pod) => {
                        // How it ended is between the two ends; both have seen it.
                        let _ = tokio::io::copy_bidirectional(&mut client, &mut pod).await;
                    }
                    Err(error) => failed(peer, error.to_string()),
                }
            });
        }
    }

    /// Ends the mesh and waits until it is gone.
    pub async fn down(&self) -> Result<(), ClientError> {
        match self.ask(&Request::Down).await?.1 {
            Response::Done => {}
            _ => return Err(self.broken("the end was due")),
        }
        let gone = async {
            while self.dir.is_alive() {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(30), gone).await.is_err() {
            return Err(self.broken("its end was due within 30 s"));
        }
        self.dir.clean();
        Ok(())
    }

    async fn event_stream(
        &self,
        request: &Request,
        mut event: impl FnMut(Event) -> bool,
    ) -> Result<(), ClientError> {
        let (mut stream, mut response) = self.ask(request).await?;
        loop {
            match response {
                Response::Event(found) => {
                    if !event(found) {
                        return Ok(());
                    }
                }
                Response::Done => return Ok(()),
                _ => return Err(self.broken("an event was due")),
            }
            response = self.next(&mut stream).await?;
        }
    }

    async fn ask(&self, request: &Request) -> Result<(UnixStream, Response), ClientError> {
        let connected = UnixStream::connect(self.dir.socket()).await;
        let mut stream = connected.map_err(|error| self.socket("connecting to its control socket", error))?;
        protocol::send(&mut stream, request).await.map_err(|error| self.socket("asking it", error))?;
        let response = self.next(&mut stream).await?;
        Ok((stream, response))
    }

    async fn next(&self, stream: &mut UnixStream) -> Result<Response, ClientError> {
        match protocol::receive(stream).await.map_err(|error| self.socket("reading its answer", error))? {
            None => Err(self.broken("an answer was due")),
            Some(Response::Failed(problems)) => Err(problems.into()),
            Some(response) => Ok(response),
        }
    }

    fn socket(&self, what: &'static str, error: io::Error) -> ClientError {
        ClientError::Socket { mesh: self.name().to_owned(), what, error }
    }

    fn broken(&self, what: &'static str) -> ClientError {
        ClientError::Broken { mesh: self.name().to_owned(), what }
    }
}

fn there_is(running: &[String]) -> String {
    match running {
        [] => "start it with `ringmail up -f FILE --name NAME`".to_owned(),
        names => format!("these run: {}", names.join(", ")),
    }
}
