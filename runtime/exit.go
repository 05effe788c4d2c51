package runtime

import (
	"encoding/json"
	"fmt"
	"os"

	"noded.dev/noded/internal/atomicfile"
)

const lostCode = 255

// saveExit writes how a container ended, before anyone is told. The first
// record stands: daemon and shim may both have seen the end.
func saveExit(dir stateDir, e Exit) (Exit, error) {
	if have, err := loadExit(dir, e.ID); err == nil && !have.Lost {
		return have, nil
	}
	data, err := json.Marshal(e)
	if err != nil {
		return e, fmt.Errorf("encode exit: %w", err)
	}
	if err := atomicfile.Write(dir.exitRecord(e.ID), data, 0o600); err != nil {
		return e, fmt.Errorf("write exit record: %w", err)
	}
	return e, nil
}

func loadExit(dir stateDir, id string) (Exit, error) {
	var e Exit
	data, err := os.ReadFile(dir.exitRecord(id))
	if err != nil {
		return e, err
	}
	if err := json.Unmarshal(data, &e); err != nil {
		return e, fmt.Errorf("decode exit record: %w", err)
	}
	return e, nil
}
