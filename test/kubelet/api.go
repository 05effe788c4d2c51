package kubelet

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"time"

	core "k8s.io/api/core/v1"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	"sigs.k8s.io/yaml"
)

// Apply gives the kubelet a static pod.
func (k *Kubelet) Apply(pod *core.Pod) error {
	data, err := yaml.Marshal(pod)
	if err != nil {
		return err
	}
	// The kubelet watches the folder and ignores names with a leading dot.
	hidden, file := k.manifest("."+pod.Name), k.manifest(pod.Name)
	if err := os.WriteFile(hidden, data, 0o600); err != nil {
		return err
	}
	return os.Rename(hidden, file)
}

// Delete takes a static pod away.
func (k *Kubelet) Delete(name string) error { return os.Remove(k.manifest(name)) }

func (k *Kubelet) manifest(name string) string {
	return filepath.Join(k.Dir, "manifests", name+".yaml")
}

// Pod is what the kubelet knows of a static pod; nil if it knows none.
func (k *Kubelet) Pod(name string) (*core.Pod, error) {
	data, err := k.get("/pods")
	if err != nil {
		return nil, err
	}
	var list core.PodList
	if err := json.Unmarshal(data, &list); err != nil {
		return nil, err
	}
	for i := range list.Items {
		if list.Items[i].Name == name+"-"+Name {
			return &list.Items[i], nil
		}
	}
	return nil, nil
}

func (k *Kubelet) url(path string) *url.URL {
	return &url.URL{Scheme: "https", Host: fmt.Sprintf("127.0.0.1:%d", k.Port), Path: path}
}

func (k *Kubelet) get(path string) ([]byte, error) {
	u := k.url("")
	resp, err := k.client.Get(u.String() + path)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err == nil && resp.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s: %s", path, resp.Status, data)
	}
	return data, err
}

// Logs are a container's, as `kubectl logs` prints them.
func (k *Kubelet) Logs(pod, container string) (string, error) {
	data, err := k.get(fmt.Sprintf("/containerLogs/default/%s-%s/%s", pod, Name, container))
	return string(data), err
}

func (k *Kubelet) rest() *rest.Config {
	return &rest.Config{Host: k.url("").String(), TLSClientConfig: rest.TLSClientConfig{Insecure: true}}
}

// Exec runs a command in a container, over SPDY or a WebSocket.
func (k *Kubelet) Exec(websocket bool, pod, container, stdin string, command ...string) (stdout, stderr string, err error) {
	u := k.url(fmt.Sprintf("/exec/default/%s-%s/%s", pod, Name, container))
	query := url.Values{"command": command, "output": {"1"}, "error": {"1"}}
	if stdin != "" {
		query.Set("input", "1")
	}
	u.RawQuery = query.Encode()
	var executor remotecommand.Executor
	if websocket {
		executor, err = remotecommand.NewWebSocketExecutor(k.rest(), http.MethodGet, u.String())
	} else {
		executor, err = remotecommand.NewSPDYExecutor(k.rest(), http.MethodPost, u)
	}
	if err != nil {
		return "", "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var out, errs bytes.Buffer
	err = reach(func() error {
		options := remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}
		if stdin != "" {
			options.Stdin = bytes.NewBufferString(stdin)
		}
		return executor.StreamWithContext(ctx, options)
	})
	return out.String(), errs.String(), err
}

// reach repeats a call that the kubelet could not pass on: after the daemon's
// death its client does not look for a new one for a second or more.
func reach(call func() error) error {
	deadline := time.Now().Add(10 * time.Second)
	for {
		err := call()
		if err == nil || !strings.Contains(err.Error(), "code = Unavailable") || time.Now().After(deadline) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// Forward opens a local port that leads to a pod's port while f runs.
func (k *Kubelet) Forward(pod string, port int, f func(local int) error) error {
	return reach(func() error { return k.forward(pod, port, f) })
}

func (k *Kubelet) forward(pod string, port int, f func(local int) error) error {
	transport, upgrader, err := spdy.RoundTripperFor(k.rest())
	if err != nil {
		return err
	}
	u := k.url(fmt.Sprintf("/portForward/default/%s-%s", pod, Name))
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, http.MethodPost, u)
	stop, ready, done := make(chan struct{}), make(chan struct{}), make(chan error, 1)
	forwarder, err := portforward.New(dialer, []string{fmt.Sprintf("0:%d", port)}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		return err
	}
	go func() { done <- forwarder.ForwardPorts() }()
	select {
	case err := <-done:
		return fmt.Errorf("forward: %w", err)
	case <-ready:
	}
	ports, err := forwarder.GetPorts()
	if err == nil {
		err = f(int(ports[0].Local))
	}
	close(stop)
	return errors.Join(err, <-done)
}
