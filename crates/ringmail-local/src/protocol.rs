//! What the command line and the daemon say to each other over the control socket.
//!
//! A message is a frame: one byte that says what it holds ([`Frame`]), its length (32 bits, big endian), its content. A client
//! sends one [`Request`]; the daemon answers with one or more [`Response`]s. After [`Request::Dial`] and its
//! [`Response::Done`] the connection carries the pod's bytes and no frames any more.

use std::io;

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use crate::manifest::{Document, ObjectKey};
use crate::problem::{Problem, Problems};
use crate::programs::Programs;
use crate::store::Applied;

/// What a client asks.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Request {
    /// How the mesh is doing.
    Status,
    /// Bring objects to what these documents say. Answer: [`Response::Applied`].
    Apply {
        /// The documents.
        documents: Vec<Document>,
        /// Kinds to leave out.
        skip_kinds: Vec<String>,
        /// What stands for images.
        programs: Programs,
    },
    /// Remove objects. Answer: [`Response::Deleted`].
    Delete {
        /// Which.
        objects: Vec<ObjectKey>,
        /// Whether an object that is not there is an error.
        ignore_missing: bool,
    },
    /// The pods. Answer: [`Response::Pods`].
    Pods {
        /// Of one namespace; `None` is all.
        namespace: Option<String>,
    },
    /// Output of containers. Answers: [`Response::Log`]s, then [`Response::Done`].
    Logs(LogRequest),
    /// Run a program in a container. Answers: [`Response::Done`] when it has started, output frames, [`Response::Exited`].
    Exec(ExecRequest),
    /// Connect to a port inside a pod. Answer: [`Response::Done`], then raw bytes.
    Dial {
        /// Namespace of the target.
        namespace: String,
        /// `pod/x`, `deploy/x`, `svc/x`, …; without a kind, a pod.
        target: String,
        /// Port at the pod's loopback; for a service, its own port.
        port: u16,
    },
    /// What happens. Answers: [`Response::Event`]s, from the oldest one kept; without `follow` then [`Response::Done`].
    Events {
        /// Whether to go on with those to come.
        follow: bool,
    },
    /// Wait until every workload is rolled out. Answers: [`Response::Event`]s, then [`Response::Done`] or a failure.
    Wait {
        /// For how long, in seconds.
        timeout: u64,
    },
    /// End the mesh. Answer: [`Response::Done`] when every pod has ended; the daemon is gone soon after.
    Down,
}

/// Which output.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LogRequest {
    /// Namespace of the target.
    pub namespace: String,
    /// `pod/x`, `deploy/x`, …; without a kind, a pod.
    pub target: String,
    /// One container; `None` is the pod's application containers.
    pub container: Option<String>,
    /// All containers, init containers and sidecars too.
    pub all_containers: bool,
    /// Go on with what comes.
    pub follow: bool,
    /// Only the last lines of what there is.
    pub tail: Option<usize>,
    /// Output of the container's run before this one.
    pub previous: bool,
}

/// What to run, where.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ExecRequest {
    /// Namespace of the target.
    pub namespace: String,
    /// `pod/x`, `deploy/x`, …; without a kind, a pod.
    pub target: String,
    /// One container; `None` is the first.
    pub container: Option<String>,
    /// Program and arguments.
    pub command: Vec<String>,
    /// Whether [`Frame::Stdin`] frames follow.
    pub stdin: bool,
    /// Rows and columns of the client's terminal, where the program is to have one.
    pub terminal: Option<(u16, u16)>,
}

/// What the daemon answers.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Response {
    /// It is done.
    Done,
    /// It was refused or failed; nothing was changed.
    Failed(Problems),
    /// To [`Request::Status`].
    Status(Status),
    /// To [`Request::Apply`].
    Applied {
        /// Each object and what happened to it.
        objects: Vec<(ObjectKey, Applied)>,
        /// What works differently than written.
        warnings: Vec<Problem>,
    },
    /// To [`Request::Delete`].
    Deleted(Vec<ObjectKey>),
    /// To [`Request::Pods`]: pods as Kubernetes JSON.
    Pods(Vec<Value>),
    /// One line of output.
    Log {
        /// The pod.
        pod: String,
        /// The container.
        container: String,
        /// The line, without its end.
        line: String,
    },
    /// Something happened.
    Event(Event),
    /// The program of an exec ended.
    Exited {
        /// Its exit code; 128 + n for signal n.
        code: i32,
    },
}

/// How a mesh is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// Its name.
    pub name: String,
    /// Version of the daemon.
    pub version: String,
    /// Whether an ordinary user runs it.
    pub rootless: bool,
    /// Pods that are there.
    pub pods: usize,
    /// Of these, how many are ready (or ended well).
    pub ready: usize,
    /// Ports of this machine that lead to services.
    pub published: Vec<Published>,
    /// Whether every workload is rolled out.
    pub settled: bool,
}

/// A port of this machine that leads to a service.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Published {
    /// The service's name.
    pub name: String,
    /// Where it is reached, such as `http://127.0.0.1:8080`.
    pub address: String,
}

/// Something that happened, for people who wait.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Event {
    /// Milliseconds since the daemon started.
    pub at_ms: u64,
    /// `Normal` or `Warning`.
    pub severity: Severity,
    /// The object that it is about, such as `pod/web-1 in ballot`.
    pub about: String,
    /// One word, such as `Started`.
    pub reason: String,
    /// One sentence.
    pub message: String,
}

/// Whether an event is as expected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Severity {
    /// As expected.
    Normal,
    /// Not as expected.
    Warning,
}

/// What a frame holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A [`Request`] or a [`Response`].
    Message,
    /// Bytes for a program; an empty one is the end of its input.
    Stdin,
    /// Bytes of a program's output.
    Stdout,
    /// Bytes of its error output.
    Stderr,
    /// A terminal's new size: rows and columns, 16 bits each.
    Resize,
}

impl Frame {
    const ALL: [Self; 5] = [Self::Message, Self::Stdin, Self::Stdout, Self::Stderr, Self::Resize];

    fn byte(self) -> u8 {
        match self {
            Self::Message => 0,
            Self::Stdin => 1,
            Self::Stdout => 2,
            Self::Stderr => 3,
            Self::Resize => 4,
        }
    }
}

/// Writes a frame.
pub async fn write_frame(
    stream: &mut (impl AsyncWrite + Unpin),
    kind: Frame,
    content: &[u8],
) -> io::Result<()> {
    let length = u32::try_from(content.len()).map_err(io::Error::other)?;
    if length > LONGEST {
        return Err(io::Error::other(format!("a message of {length} bytes is too long (at most {LONGEST})")));
    }
    let mut frame = Vec::with_capacity(content.len() + 5);
    frame.push(kind.byte());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(content);
    stream.write_all(&frame).await?;
    stream.flush().await
}

/// Reads a frame, and not a byte more; `None` at the end of the stream.
pub async fn read_frame(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<(Frame, Vec<u8>)>> {
    let kind = match stream.read_u8().await {
        Ok(kind) => kind,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        Err(error) => return Err(error),
    };
    let bad = |what: String| io::Error::new(io::ErrorKind::InvalidData, what);
    let kind = Frame::ALL
        .into_iter()
        .find(|known| known.byte() == kind)
        .ok_or_else(|| bad(format!("a frame of unknown kind {kind}")))?;
    let length = stream.read_u32().await?;
    if length > LONGEST {
        return Err(bad(format!("a frame of {length} bytes is too long (at most {LONGEST})")));
    }
    // Grows as bytes come: the announced length alone allocates nothing.
    let mut content = Vec::new();
    stream.take(u64::from(length)).read_to_end(&mut content).await?;
    if content.len() != length as usize {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(Some((kind, content)))
}

/// Writes a message.
pub async fn send(stream: &mut (impl AsyncWrite + Unpin), message: &impl Serialize) -> io::Result<()> {
    let content = serde_json::to_vec(message).map_err(io::Error::other)?;
    write_frame(stream, Frame::Message, &content).await
}

/// Reads a message; `None` at the end of the stream.
pub async fn receive<T: DeserializeOwned>(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<T>> {
    match read_frame(stream).await? {
        None => Ok(None),
        Some((Frame::Message, content)) => serde_json::from_slice(&content).map(Some).map_err(|error| {
            io::Error::new(
                io::ErrorKind::InvalidData,
                format!("a message that cannot be understood: {error}"),
            )
        }),
        Some((kind, _)) => Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("a {kind:?} frame where a message was due"),
        )),
    }
}

/// Manifests with large config maps fit; nothing else comes near.
const LONGEST: u32 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_sent_is_received_and_nothing_beyond_is_read() {
        let (mut a, mut b) = tokio::io::duplex(1 << 16);
        send(&mut a, &Request::Down).await.unwrap();
        a.write_all(b"raw").await.unwrap();
        assert!(matches!(receive(&mut b).await.unwrap(), Some(Request::Down)));
        let mut rest = [0; 3];
        b.read_exact(&mut rest).await.unwrap();
        assert_eq!(&rest, b"raw");
        drop(a);
        assert!(receive::<Request>(&mut b).await.unwrap().is_none());
    }

    #[tokio::test]
    async fn frames_that_are_too_long_unknown_or_cut_are_refused() {
        for bytes in [&[0, 0xff, 0xff, 0xff, 0xff][..], &[9, 0, 0, 0, 0], &[0, 0, 0, 0, 9, b'x']] {
            let mut stream = bytes;
            assert!(read_frame(&mut stream).await.is_err(), "{bytes:?}");
        }
        let mut nonsense = &[0, 0, 0, 0, 1, b'{'][..];
        assert!(receive::<Request>(&mut nonsense).await.is_err());
    }
}
