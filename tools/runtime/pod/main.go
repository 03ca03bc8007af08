// The one program of the image that test containers run.
//
//	pod pause          waits, as a sandbox's first process does
//	pod serve PORT...  echoes on these ports, by TCP and UDP, on every address
package main

import (
	"fmt"
	"io"
	"net"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	stop := make(chan os.Signal, 1)
	signal.Notify(stop, syscall.SIGTERM, syscall.SIGINT)
	if len(os.Args) > 2 && os.Args[1] == "serve" {
		for _, port := range os.Args[2:] {
			if err := serve(port); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	} else if len(os.Args) != 2 || os.Args[1] != "pause" {
		fmt.Fprintln(os.Stderr, "usage: pod pause | pod serve PORT...")
		os.Exit(2)
	}
	<-stop
}

func serve(port string) error {
	listener, err := net.Listen("tcp", ":"+port)
	if err != nil {
		return err
	}
	packets, err := net.ListenPacket("udp", ":"+port)
	if err != nil {
		return err
	}
	go accept(listener)
	go reflect(packets)
	return nil
}

func accept(listener net.Listener) {
	for {
		connection, err := listener.Accept()
		if err != nil {
			continue
		}
		go func() {
			defer connection.Close()
			io.Copy(connection, connection)
		}()
	}
}

func reflect(packets net.PacketConn) {
	buffer := make([]byte, 65536)
	for {
		length, from, err := packets.ReadFrom(buffer)
		if err == nil {
			packets.WriteTo(buffer[:length], from)
		}
	}
}
