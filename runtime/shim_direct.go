package runtime

// startDirect starts a process without the OCI runtime.
func startDirect(e execSpec) (execProcess, error) {
	return execProcess{}, errUnsupported
}
