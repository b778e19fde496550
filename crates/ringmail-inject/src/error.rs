//! What can be wrong with what injection is given.

/// Why a pod or manifest cannot be worked on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InjectError {
    /// An annotation has a value that its option does not take.
    #[error("RM1400: annotation `{annotation}` of {object}: `{value}`: {why}")]
    Annotation {
        /// The annotation's full name.
        annotation: String,
        /// The pod or namespace that has it.
        object: String,
        /// What it says.
        value: String,
        /// What it should say.
        why: String,
    },
    /// A setting of the mesh is wrong.
    #[error("RM1401: setting `{field}` of the mesh: `{value}`: {why}")]
    Values {
        /// The field or option.
        field: String,
        /// What it is.
        value: String,
        /// What it should be.
        why: String,
    },
    /// The pod is not shaped like one.
    #[error("RM1403: {object}: field `{field}`: {why}")]
    Malformed {
        /// The pod.
        object: String,
        /// The field.
        field: String,
        /// What is wrong with it.
        why: String,
    },
    /// A patch does not fit the value it is applied to.
    #[error("RM1404: the patch does not fit: `{path}`: {why}")]
    Patch {
        /// A JSON pointer (RFC 6901).
        path: String,
        /// What is wrong there.
        why: String,
    },
    /// A manifest is not valid YAML.
    #[error("RM1405: {place}: {why}")]
    Syntax {
        /// `file:line`, as far as it is known.
        place: String,
        /// What the parser says.
        why: String,
    },
    /// A workload that was to be injected cannot be.
    #[error(
        "RM1406: {object} cannot be injected: {reasons}; to leave it out of the mesh, annotate it with `ringmail.dev/inject: disabled`"
    )]
    Impossible {
        /// The workload.
        object: String,
        /// Why, separated by commas.
        reasons: String,
    },
}

impl InjectError {
    /// The stable code, such as `RM1400`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Annotation { .. } => "RM1400",
            Self::Values { .. } => "RM1401",
            Self::Malformed { .. } => "RM1403",
            Self::Patch { .. } => "RM1404",
            Self::Syntax { .. } => "RM1405",
            Self::Impossible { .. } => "RM1406",
        }
    }
}

/// What is not as its author may think, but does not stop injection.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// An annotation that means nothing.
    #[error("RM1402: annotation `{annotation}` of {object} is unknown and has no effect{}", near.map_or_else(String::new, |near| format!("; did you mean `{near}`?")))]
    Unknown {
        /// The annotation's full name.
        annotation: String,
        /// The pod or namespace that has it.
        object: String,
        /// The option whose name comes nearest.
        near: Option<&'static str>,
    },
    /// An option that a namespace cannot set.
    #[error("RM1407: annotation `{annotation}` of {object} has no effect there; set it on the pod")]
    NotInherited {
        /// The annotation's full name.
        annotation: String,
        /// The namespace.
        object: String,
    },
    /// A port that is only known by a name which the pod does not have.
    #[error(
        "RM1408: annotation `{annotation}` of {object} names port `{port}`, which no container of the pod declares"
    )]
    PortName {
        /// The annotation's full name.
        annotation: String,
        /// The pod or namespace that has it.
        object: String,
        /// The name.
        port: String,
    },
    /// The owner's name is too long for a label.
    #[error(
        "RM1409: the owner {kind} `{name}` is not named in a label, since a label's value has at most 63 bytes"
    )]
    OwnerName {
        /// The owner's kind.
        kind: String,
        /// Its name.
        name: String,
    },
    /// UDP is not meshed.
    #[error("RM1410: {object} has UDP ports, whose traffic does not go through the proxy")]
    Udp {
        /// The pod.
        object: String,
    },
    /// A document that was written anew.
    #[error(
        "RM1411: {object} could not be edited in place and was written anew: its comments and formatting are lost"
    )]
    Rewritten {
        /// The workload.
        object: String,
    },
}
