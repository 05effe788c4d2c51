package stream

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"

	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
)

// status is the part of Kubernetes' metav1.Status with which a session ends
// from protocol version 4 on.
type status struct {
	Metadata struct{} `json:"metadata"`
	Status   string   `json:"status"` // "Success" or "Failure"
	Message  string   `json:"message,omitempty"`
	Reason   string   `json:"reason,omitempty"`
	Details  *details `json:"details,omitempty"`
	Code     int      `json:"code,omitempty"` // HTTP
}

type details struct {
	Causes []cause `json:"causes"`
}

type cause struct {
	Reason  string `json:"reason,omitempty"`
	Message string `json:"message"`
}

// statusOf describes how a command ended.
func statusOf(code int, err error) status {
	switch {
	case err != nil:
		return status{
			Status: "Failure", Reason: "InternalError", Code: 500,
			Message: "Internal error occurred: " + err.Error(),
			Details: &details{Causes: []cause{{Message: err.Error()}}},
		}
	case code != 0:
		return status{
			Status: "Failure", Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: exit status %d", code),
			Details: &details{Causes: []cause{{Reason: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(code)}}},
		}
	}
	return status{Status: "Success"}
}

// write sends the status: as JSON, or to clients of older protocols as text,
// where nothing means success.
func (s status) write(w io.Writer, asJSON bool) error {
	text := []byte(s.Message)
	if asJSON {
		var err error
		if text, err = json.Marshal(s); err != nil {
			return fmt.Errorf("write status: %w", err)
		}
	}
	if len(text) == 0 {
		return nil
	}
	if _, err := w.Write(text); err != nil {
		return fmt.Errorf("write status: %w", err)
	}
	return nil
}
