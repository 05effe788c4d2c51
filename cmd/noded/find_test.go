package main

import (
	"strings"
	"testing"

	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func ctr(id, pod, name string, created int64, state cri.ContainerState) *cri.Container {
	return &cri.Container{Id: id, PodSandboxId: pod, Metadata: &cri.ContainerMetadata{Name: name}, CreatedAt: created, State: state}
}

func TestPickContainer(t *testing.T) {
	const running, exited = cri.ContainerState_CONTAINER_RUNNING, cri.ContainerState_CONTAINER_EXITED
	list := func() []*cri.Container {
		return []*cri.Container{
			ctr("aaa111", "p1", "app", 1, exited),
			ctr("aaa222", "p1", "app", 2, running),
			ctr("bbb111", "p1", "log", 3, exited),
			ctr("bbb222", "p1", "log", 4, exited),
			ctr("ccc111", "p2", "log", 5, running),
			ctr("app", "p3", "other", 6, running),
			ctr("ddd111", "p3", "aaa1", 7, running),
		}
	}
	pods := map[string]string{"p1": "one", "p2": "two", "p3": "three"}
	for _, c := range []struct{ name, id, problem string }{
		{"aaa111", "aaa111", ""},
		{"bbb2", "bbb222", ""},
		{"app", "app", ""},        // a whole id before a name
		{"one/app", "aaa222", ""}, // the running one of a pod's attempts
		{"one/log", "bbb222", ""}, // the newest, where none runs
		{"two/log", "ccc111", ""}, // in the pod that is named
		{"log", "", "not one"},    // in two pods
		{"aaa", "", "not one"},    // two ids begin so
		{"aaa1", "ddd111", ""},    // a name before the begin of an id
		{"nothing", "", "no container"},
		{"two/app", "", "no container"},
	} {
		got, err := pickContainer(list(), pods, c.name)
		if c.problem != "" {
			if err == nil || !strings.Contains(err.Error(), c.problem) {
				t.Errorf("%s: %v, want an error with %q", c.name, err, c.problem)
			}
			continue
		}
		if err != nil || got.GetId() != c.id {
			t.Errorf("%s: got %s, %v, want %s", c.name, got.GetId(), err, c.id)
		}
	}
}

func TestPickPod(t *testing.T) {
	pod := func(id, namespace, name string) *cri.PodSandbox {
		return &cri.PodSandbox{Id: id, Metadata: &cri.PodSandboxMetadata{Name: name, Namespace: namespace}}
	}
	pods := []*cri.PodSandbox{pod("abc1", "default", "web"), pod("abc2", "kube-system", "web"), pod("def1", "default", "db")}
	for name, want := range map[string]string{"default/web": "abc1", "kube-system/web": "abc2", "db": "def1", "d": "def1", "abc2": "abc2", "web": "", "abc": "", "x": ""} {
		got, err := pickPod(pods, name)
		if (want == "") != (err != nil) || got.GetId() != want {
			t.Errorf("%s: got %q, %v, want %q", name, got.GetId(), err, want)
		}
	}
}
