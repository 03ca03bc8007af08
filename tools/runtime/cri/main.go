// A client of the Container Runtime Interface, as a kubelet is one: it says what is to be and prints what became of it.
//
//	cri SOCKET version         waits until the runtime and its network are ready
//	cri SOCKET run FILE        a sandbox and its container; prints {"sandbox", "container", "pid", "addresses"}
//	cri SOCKET remove ID...    ends sandboxes with all that is in them
//	cri SOCKET list            prints every sandbox: {"sandbox", "namespace", "name", "ready"}
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// How long the runtime may take for one command.
const patience = 120 * time.Second

// What a container is to be.
type wanted struct {
	Namespace    string
	Name         string
	UID          string
	Labels       map[string]string
	Image        string
	Arguments    []string
	CgroupParent string
	Ports        []*cri.PortMapping
}

type started struct {
	Sandbox   string   `json:"sandbox"`
	Container string   `json:"container"`
	PID       int      `json:"pid"`
	Addresses []string `json:"addresses"`
}

type listed struct {
	Sandbox   string `json:"sandbox"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	Ready     bool   `json:"ready"`
}

func main() {
	if len(os.Args) < 3 {
		fmt.Fprintln(os.Stderr, "usage: cri SOCKET version | run FILE | remove ID... | list")
		os.Exit(2)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	connection, err := grpc.NewClient("unix://"+os.Args[1], grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err == nil {
		err = obey(ctx, cri.NewRuntimeServiceClient(connection), os.Args[2], os.Args[3:])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func obey(ctx context.Context, runtime cri.RuntimeServiceClient, command string, arguments []string) error {
	switch {
	case command == "version" && len(arguments) == 0:
		return version(ctx, runtime)
	case command == "run" && len(arguments) == 1:
		return run(ctx, runtime, arguments[0])
	case command == "remove":
		return remove(ctx, runtime, arguments)
	case command == "list" && len(arguments) == 0:
		return list(ctx, runtime)
	}
	return fmt.Errorf("%s is no command", command)
}

func version(ctx context.Context, runtime cri.RuntimeServiceClient) error {
	answer, err := runtime.Version(ctx, &cri.VersionRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return err
	}
	status, err := runtime.Status(ctx, &cri.StatusRequest{})
	if err != nil {
		return err
	}
	for _, condition := range status.Status.Conditions {
		if !condition.Status {
			return fmt.Errorf("%s: %s %s", condition.Type, condition.Reason, condition.Message)
		}
	}
	return say(map[string]string{"name": answer.RuntimeName, "version": answer.RuntimeVersion})
}

func run(ctx context.Context, runtime cri.RuntimeServiceClient, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var wanted wanted
	if err := json.Unmarshal(text, &wanted); err != nil {
		return err
	}
	sandbox := &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: wanted.Name, Namespace: wanted.Namespace, Uid: wanted.UID},
		Labels:       wanted.Labels,
		PortMappings: wanted.Ports,
		Linux:        &cri.LinuxPodSandboxConfig{CgroupParent: wanted.CgroupParent},
	}
	made, err := runtime.RunPodSandbox(ctx, &cri.RunPodSandboxRequest{Config: sandbox})
	if err != nil {
		return err
	}
	container, err := start(ctx, runtime, made.PodSandboxId, sandbox, &wanted)
	if err != nil {
		return errors.Join(err, remove(ctx, runtime, []string{made.PodSandboxId}))
	}
	status, err := runtime.PodSandboxStatus(ctx, &cri.PodSandboxStatusRequest{PodSandboxId: made.PodSandboxId, Verbose: true})
	if err != nil {
		return err
	}
	var info struct {
		PID int `json:"pid"`
	}
	if err := json.Unmarshal([]byte(status.Info["info"]), &info); err != nil {
		return err
	}
	addresses := []string{}
	if network := status.Status.Network; network != nil {
		addresses = append(addresses, network.Ip)
		for _, more := range network.AdditionalIps {
			addresses = append(addresses, more.Ip)
		}
	}
	return say(started{made.PodSandboxId, container, info.PID, addresses})
}

func start(ctx context.Context, runtime cri.RuntimeServiceClient, id string, sandbox *cri.PodSandboxConfig, wanted *wanted) (string, error) {
	config := &cri.ContainerConfig{
		Metadata: &cri.ContainerMetadata{Name: wanted.Name},
		Image:    &cri.ImageSpec{Image: wanted.Image},
		Args:     wanted.Arguments,
		Linux:    &cri.LinuxContainerConfig{},
	}
	made, err := runtime.CreateContainer(ctx, &cri.CreateContainerRequest{PodSandboxId: id, Config: config, SandboxConfig: sandbox})
	if err != nil {
		return "", err
	}
	_, err = runtime.StartContainer(ctx, &cri.StartContainerRequest{ContainerId: made.ContainerId})
	return made.ContainerId, err
}

func remove(ctx context.Context, runtime cri.RuntimeServiceClient, ids []string) error {
	for _, id := range ids {
		if _, err := runtime.StopPodSandbox(ctx, &cri.StopPodSandboxRequest{PodSandboxId: id}); err != nil {
			return err
		}
		if _, err := runtime.RemovePodSandbox(ctx, &cri.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			return err
		}
	}
	return nil
}

func list(ctx context.Context, runtime cri.RuntimeServiceClient) error {
	answer, err := runtime.ListPodSandbox(ctx, &cri.ListPodSandboxRequest{})
	if err != nil {
		return err
	}
	found := []listed{}
	for _, sandbox := range answer.Items {
		ready := sandbox.State == cri.PodSandboxState_SANDBOX_READY
		found = append(found, listed{sandbox.Id, sandbox.Metadata.Namespace, sandbox.Metadata.Name, ready})
	}
	return say(found)
}

func say(value any) error {
	return json.NewEncoder(os.Stdout).Encode(value)
}
