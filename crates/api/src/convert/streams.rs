//! Conversion of streams between a user and a task.

use std::num::NonZeroU16;

use super::{Malformed, require};
use crate::model::{
    LogLine, LogRange, Output, Program, StreamKind, StreamRequest, TaskFrame, TaskPort, TerminalSize, UserFrame,
};
use crate::proto::streams as ps;
use crate::proto::streams::frame::Frame as Content;
use crate::version::Timestamp;

impl From<Content> for ps::Frame {
    fn from(content: Content) -> Self {
        Self { frame: Some(content) }
    }
}

impl From<StreamRequest> for ps::Frame {
    fn from(it: StreamRequest) -> Self {
        let task = it.task.to_string();
        let content = match it.kind {
            StreamKind::Exec(it) => Content::Exec(ps::ExecRequest {
                task,
                command: it.command,
                tty: it.terminal.is_some(),
                stdin: it.stdin,
                user: it.user,
                working_dir: it.working_dir,
                env: it.env,
                rows: it.terminal.map_or(0, |size| size.rows),
                columns: it.terminal.map_or(0, |size| size.columns),
            }),
            StreamKind::Logs(it) => Content::Logs(ps::LogsRequest {
                task,
                service: String::new(),
                follow: it.follow,
                tail: it.tail.unwrap_or_default(),
                tail_set: it.tail.is_some(),
            }),
            StreamKind::Forward(port) => {
                Content::Forward(ps::ForwardRequest { task, port: port.0.get().into(), turn: 0 })
            }
            StreamKind::Check(it) => {
                Content::Check(ps::CheckRequest { task, network: it.network.into(), probe: it.probe })
            }
            StreamKind::Health => Content::AskHealth(ps::HealthRequest { task }),
        };
        content.into()
    }
}

impl TryFrom<ps::Frame> for StreamRequest {
    type Error = Malformed;
    fn try_from(frame: ps::Frame) -> Result<Self, Malformed> {
        match require(frame.frame, "frame")? {
            Content::Exec(mut it) => {
                Ok(Self { task: std::mem::take(&mut it.task).into(), kind: StreamKind::Exec(it.into()) })
            }
            Content::Logs(it) => Ok(Self { kind: StreamKind::Logs((&it).into()), task: it.task.into() }),
            Content::Forward(it) => Ok(Self { task: it.task.into(), kind: StreamKind::Forward(it.port.try_into()?) }),
            Content::Check(mut it) => {
                Ok(Self { task: std::mem::take(&mut it.task).into(), kind: StreamKind::Check(it.into()) })
            }
            Content::AskHealth(it) => Ok(Self { task: it.task.into(), kind: StreamKind::Health }),
            _ => Err(Malformed::new("frame", "is not a request")),
        }
    }
}

impl From<ps::ExecRequest> for Program {
    fn from(it: ps::ExecRequest) -> Self {
        Self {
            command: it.command,
            env: it.env,
            working_dir: it.working_dir,
            user: it.user,
            stdin: it.stdin,
            terminal: it.tty.then_some(TerminalSize { rows: it.rows, columns: it.columns }),
        }
    }
}

impl From<&ps::LogsRequest> for LogRange {
    fn from(it: &ps::LogsRequest) -> Self {
        Self { follow: it.follow, tail: it.tail_set.then_some(it.tail) }
    }
}

impl TryFrom<u32> for TaskPort {
    type Error = Malformed;
    fn try_from(number: u32) -> Result<Self, Malformed> {
        let port = u16::try_from(number).ok().and_then(NonZeroU16::new);
        port.map(Self).ok_or(Malformed::new("port", "is 1 to 65535"))
    }
}

impl From<UserFrame> for ps::Frame {
    fn from(frame: UserFrame) -> Self {
        let content = match frame {
            UserFrame::Stdin(bytes) => Content::Stdin(bytes),
            UserFrame::StdinClosed => Content::StdinClosed(true),
            UserFrame::Resize(size) => Content::Resize(ps::Resize { rows: size.rows, columns: size.columns }),
            UserFrame::Data(bytes) => Content::Data(bytes),
            UserFrame::DataEnd => Content::DataEnd(true),
        };
        content.into()
    }
}

impl TryFrom<ps::Frame> for UserFrame {
    type Error = Malformed;
    fn try_from(frame: ps::Frame) -> Result<Self, Malformed> {
        match require(frame.frame, "frame")? {
            Content::Stdin(bytes) => Ok(Self::Stdin(bytes)),
            Content::StdinClosed(_) => Ok(Self::StdinClosed),
            Content::Resize(size) => Ok(Self::Resize(TerminalSize { rows: size.rows, columns: size.columns })),
            Content::Data(bytes) => Ok(Self::Data(bytes)),
            Content::DataEnd(_) => Ok(Self::DataEnd),
            _ => Err(Malformed::new("frame", "is not one that a user sends")),
        }
    }
}

impl From<TaskFrame> for ps::Frame {
    fn from(frame: TaskFrame) -> Self {
        let content = match frame {
            TaskFrame::Stdout(bytes) => Content::Stdout(bytes),
            TaskFrame::Stderr(bytes) => Content::Stderr(bytes),
            TaskFrame::ExitCode(code) => Content::ExitCode(code),
            TaskFrame::Log(line) => Content::Log(line.into()),
            TaskFrame::Error(text) => Content::Error(text),
            TaskFrame::Connected => Content::Connected(true),
            TaskFrame::Data(bytes) => Content::Data(bytes),
            TaskFrame::DataEnd => Content::DataEnd(true),
            TaskFrame::Checked(report) => Content::Checked(report.into()),
            TaskFrame::Health(health) => Content::Health((&health).into()),
        };
        content.into()
    }
}

impl TryFrom<ps::Frame> for TaskFrame {
    type Error = Malformed;
    fn try_from(frame: ps::Frame) -> Result<Self, Malformed> {
        match require(frame.frame, "frame")? {
            Content::Stdout(bytes) => Ok(Self::Stdout(bytes)),
            Content::Stderr(bytes) => Ok(Self::Stderr(bytes)),
            Content::ExitCode(code) => Ok(Self::ExitCode(code)),
            Content::Log(line) => Ok(Self::Log(line.try_into()?)),
            Content::Error(text) => Ok(Self::Error(text)),
            Content::Connected(_) => Ok(Self::Connected),
            Content::Data(bytes) => Ok(Self::Data(bytes)),
            Content::DataEnd(_) => Ok(Self::DataEnd),
            Content::Checked(report) => Ok(Self::Checked(report.try_into()?)),
            Content::Health(health) => Ok(Self::Health(health.try_into()?)),
            _ => Err(Malformed::new("frame", "is not one that a node sends")),
        }
    }
}

impl From<LogLine> for ps::LogLine {
    fn from(it: LogLine) -> Self {
        let stream = match it.output {
            Output::Stdout => 1,
            Output::Stderr => 2,
        };
        Self {
            task_id: it.task.into(),
            task_name: it.task_name,
            node_name: it.node_name,
            at: it.at.0,
            stream,
            line: it.line,
            number: it.number,
        }
    }
}

impl TryFrom<ps::LogLine> for LogLine {
    type Error = Malformed;
    fn try_from(it: ps::LogLine) -> Result<Self, Malformed> {
        let output = match it.stream {
            1 => Output::Stdout,
            2 => Output::Stderr,
            _ => return Err(Malformed::new("log.stream", "has an unknown value")),
        };
        Ok(Self {
            task: it.task_id.into(),
            task_name: it.task_name,
            node_name: it.node_name,
            at: Timestamp(it.at),
            output,
            line: it.line,
            number: it.number,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{
        Balancer, BalancerReport, Health, HealthResult, HealthState, LayerFailure, NetworkCheck, NetworkLayer,
        NetworkReport, PeerReport,
    };

    fn round_trip<T: Clone + PartialEq + std::fmt::Debug + Into<ps::Frame> + TryFrom<ps::Frame, Error = Malformed>>(
        frames: &[T],
    ) {
        for frame in frames {
            let wire: ps::Frame = frame.clone().into();
            assert_eq!(T::try_from(wire), Ok(frame.clone()));
        }
    }

    fn line(output: Output) -> LogLine {
        let (task_name, node_name) = ("web.1".into(), "w1".into());
        LogLine { task: "t".into(), task_name, node_name, at: Timestamp(5), output, line: "x".into(), number: 9 }
    }

    fn report() -> NetworkReport {
        let failure = LayerFailure { layer: NetworkLayer::Mtu, why: "too large".into() };
        let round_trip = Some(std::time::Duration::from_micros(70));
        NetworkReport {
            balancer: BalancerReport {
                kind: Some(Balancer::Bpf),
                virtual_ips: 1,
                backends: 2,
                differences: vec!["x".into()],
            },
            peers: vec![
                PeerReport { node: "w1".into(), round_trip, failures: Vec::new() },
                PeerReport { node: "w2".into(), round_trip: None, failures: vec![failure] },
            ],
            unprobed: 3,
        }
    }

    #[test]
    fn requests_and_frames_survive_the_wire() {
        let program = Program { command: vec!["ls".into()], stdin: true, ..Program::default() };
        let size = TerminalSize { rows: 0, columns: 80 };
        let kinds = [
            StreamKind::Exec(program.clone()),
            StreamKind::Exec(Program { terminal: Some(size), ..program }),
            StreamKind::Logs(LogRange { follow: true, tail: Some(0) }),
            StreamKind::Logs(LogRange { follow: false, tail: None }),
            StreamKind::Forward(80.try_into().expect("it is one")),
            StreamKind::Check(NetworkCheck { network: "n".into(), probe: true }),
            StreamKind::Health,
        ];
        round_trip(&kinds.map(|kind| StreamRequest { task: "t".into(), kind }));
        round_trip(&[
            UserFrame::Stdin("a".into()),
            UserFrame::StdinClosed,
            UserFrame::Resize(size),
            UserFrame::Data("b".into()),
            UserFrame::DataEnd,
        ]);
        round_trip(&[
            TaskFrame::Stdout("a".into()),
            TaskFrame::Stderr("b".into()),
            TaskFrame::ExitCode(-1),
            TaskFrame::Log(line(Output::Stdout)),
            TaskFrame::Log(line(Output::Stderr)),
            TaskFrame::Error("no".into()),
            TaskFrame::Connected,
            TaskFrame::Data("c".into()),
            TaskFrame::DataEnd,
            TaskFrame::Checked(report()),
            TaskFrame::Health(Health {
                state: HealthState::Healthy,
                log: vec![HealthResult::default()],
                ..Health::default()
            }),
        ]);
    }

    #[test]
    fn a_frame_of_the_other_direction_and_a_port_that_is_none_are_malformed() {
        assert!(UserFrame::try_from(ps::Frame::from(TaskFrame::ExitCode(0))).is_err());
        assert!(TaskFrame::try_from(ps::Frame::from(UserFrame::StdinClosed)).is_err());
        assert!(StreamRequest::try_from(ps::Frame::from(UserFrame::StdinClosed)).is_err());
        assert!(TaskFrame::try_from(ps::Frame { frame: None }).is_err());
        assert!(TaskFrame::try_from(ps::Frame::from(Content::Log(ps::LogLine::default()))).is_err());
        assert!([0, 65_536].iter().all(|number| TaskPort::try_from(*number).is_err()));
    }
}
