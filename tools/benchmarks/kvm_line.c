/*
 * The micro VM's schemes once more in C: the same guest image, the same card, the same loops, with nothing of Python in
 * them. tools/bench kvm builds this, races it against vfio_intx.microvm in turns, and prints the ratios.
 *
 *     kvm_line SCHEME ioapic|pic IMAGE       SCHEME: irqfd, ack-eventfd, split, trap or ceiling
 *
 * On stdin: "race N\n" answers with N round trips in ns (8 bytes each, 0 for a lost one), "run MS\n" (ceiling) with two
 * words: interrupts and ns. End of input ends the program.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

enum { RAM = 0x4000, CODE = 0x1000, MAILBOX = 0x2000, BAR = 0xe0000000, DEVICE_CAUSE = 0, DEVICE_ACK = 16 };
enum { CHIP, PIN, VECTOR, REDIRECTION, QUIET, STATUS, ACKNOWLEDGE, NUDGE = 11, READY = 32, HANDLER_RUNS };

static int vm, vcpu, trigger, unmask_fd, ack_fd = -1;
static uint32_t gsi;
static volatile uint32_t *mailbox, *registers;
static volatile int pending;
static struct kvm_run *run;
static enum { IRQFD, ACK_EVENTFD, SPLIT, TRAP, CEILING } scheme;

static void die(const char *what)
{
	fprintf(stderr, "kvm_line: %s: %s\n", what, strerror(errno));
	exit(1);
}

static long must(long result, const char *what)
{
	if (result < 0)
		die(what);
	return result;
}

static uint64_t now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000ull + t.tv_nsec;
}

static void signal_fd(int fd)
{
	uint64_t one = 1;

	must(write(fd, &one, 8), "write");
}

static uint64_t drain(int fd)
{
	uint64_t count = 0;

	return read(fd, &count, 8) == 8 ? count : 0;
}

static void line(int level)
{
	struct kvm_irq_level request = { .irq = gsi, .level = level };

	must(ioctl(vm, KVM_IRQ_LINE, &request), "KVM_IRQ_LINE");
}

static void irqfd(int fd, int resample, int flags)
{
	struct kvm_irqfd request = { .fd = fd, .gsi = gsi, .flags = flags };

	if (resample >= 0) {
		request.flags |= KVM_IRQFD_FLAG_RESAMPLE;
		request.resamplefd = resample;
	}
	must(ioctl(vm, KVM_IRQFD, &request), "KVM_IRQFD");
}

/* trap: any access ends the interrupt. */
static void accessed(void)
{
	if (pending) {
		pending = 0;
		line(0);
		signal_fd(unmask_fd);
	}
}

/* split: only what the guest programs, one pin. */
static void ioapic_write(uint32_t offset, uint32_t value)
{
	static uint32_t selected;
	struct {
		struct kvm_irq_routing head;
		struct kvm_irq_routing_entry entry;
	} table = { .head.nr = 1 };

	if (offset == 0)
		selected = value;
	else if (selected == 0x10 + 2 * gsi && !(value & 0x10000)) {
		table.entry.gsi = gsi;
		table.entry.type = KVM_IRQ_ROUTING_MSI;
		table.entry.u.msi.address_lo = 0xfee00000;
		table.entry.u.msi.data = (value & 0xff) | (value & 0x8000);
		must(ioctl(vm, KVM_SET_GSI_ROUTING, &table), "KVM_SET_GSI_ROUTING");
	}
}

static void mmio(void)
{
	uint64_t address = run->mmio.phys_addr;
	uint32_t value;

	memcpy(&value, run->mmio.data, 4);
	if (scheme == TRAP && address >= BAR && address < BAR + 4096) {
		if (run->mmio.is_write)
			registers[(address - BAR) / 4] = value;
		else {
			value = registers[(address - BAR) / 4];
			memcpy(run->mmio.data, &value, 4);
		}
		accessed();
	} else if (scheme == SPLIT && run->mmio.is_write && address >> 12 == 0xfec00)
		ioapic_write(address & 0xfff, value);
	else {
		fprintf(stderr, "kvm_line: unexpected access to %#llx\n", (unsigned long long)address);
		exit(1);
	}
}

static void *vcpu_thread(void *unused)
{
	for (;;) {
		if (ioctl(vcpu, KVM_RUN, 0) < 0) {
			if (errno == EINTR || errno == EAGAIN)
				continue;
			die("KVM_RUN");
		}
		if (run->exit_reason == KVM_EXIT_MMIO)
			mmio();
		else if (run->exit_reason == KVM_EXIT_IOAPIC_EOI)
			signal_fd(unmask_fd);
		else if (run->exit_reason != KVM_EXIT_IO || scheme != SPLIT) {
			fprintf(stderr, "kvm_line: unexpected exit %u\n", run->exit_reason);
			exit(1);
		}
	}
	return unused;
}

/* ack-eventfd and trap: the VMM's own thread. */
static void *vmm_thread(void *unused)
{
	struct pollfd fds[2] = { { .fd = trigger, .events = POLLIN }, { .fd = ack_fd, .events = POLLIN } };

	for (;;) {
		must(poll(fds, 2, -1), "poll");
		if (fds[0].revents) {
			drain(trigger);
			/* In this order: an access in between must not lower a level that is raised only afterwards. */
			line(1);
			pending = 1;
		}
		if (fds[1].revents) {
			drain(ack_fd);
			line(0);
			signal_fd(unmask_fd);
		}
	}
	return unused;
}

static uint64_t round_trip(int allowed_ms)
{
	struct pollfd ready = { .fd = unmask_fd, .events = POLLIN };
	uint32_t number = registers[DEVICE_CAUSE] + 1;
	uint64_t began = now();

	registers[DEVICE_CAUSE] = number;
	signal_fd(trigger);
	while (poll(&ready, 1, allowed_ms) > 0) {
		drain(unmask_fd);
		if (registers[DEVICE_ACK] == number)
			return now() - began;
		signal_fd(trigger);
	}
	registers[DEVICE_CAUSE] = registers[DEVICE_ACK];
	drain(trigger);
	return 0;
}

static void settle(void)
{
	uint32_t runs;

	do {
		runs = mailbox[HANDLER_RUNS];
		usleep(500);
	} while (mailbox[HANDLER_RUNS] != runs);
	drain(unmask_fd);
}

static void unreal_mode(void)
{
	struct kvm_sregs s;
	struct kvm_regs r = { .rip = CODE, .rsp = RAM, .rflags = 2 };
	struct kvm_segment *data[] = { &s.ds, &s.es, &s.fs, &s.gs };

	must(ioctl(vcpu, KVM_GET_SREGS, &s), "KVM_GET_SREGS");
	s.cs.base = s.cs.selector = 0;
	for (int i = 0; i < 4; i++) {
		data[i]->limit = 0xffffffff;
		data[i]->g = 1;
	}
	must(ioctl(vcpu, KVM_SET_SREGS, &s), "KVM_SET_SREGS");
	must(ioctl(vcpu, KVM_SET_REGS, &r), "KVM_SET_REGS");
}

static void *memory(int slot, uint64_t address, size_t size, int mapped)
{
	void *at = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct kvm_userspace_memory_region region = {
		.slot = slot, .guest_phys_addr = address, .memory_size = size, .userspace_addr = (uint64_t)at
	};

	if (at == MAP_FAILED)
		die("mmap");
	if (mapped)
		must(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
	return at;
}

static void build(const char *image, int pic)
{
	struct kvm_enable_cap split = { .cap = KVM_CAP_SPLIT_IRQCHIP, .args = { 24 } };
	int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
	int file = must(open(image, O_RDONLY), image);
	char *ram;

	vm = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
	must(ioctl(vm, KVM_SET_TSS_ADDR, 0xfffbd000ul), "KVM_SET_TSS_ADDR");
	if (scheme == SPLIT)
		must(ioctl(vm, KVM_ENABLE_CAP, &split), "KVM_CAP_SPLIT_IRQCHIP");
	else
		must(ioctl(vm, KVM_CREATE_IRQCHIP, 0), "KVM_CREATE_IRQCHIP");
	ram = memory(0, 0, RAM, 1);
	registers = memory(1, BAR, 4096, scheme != TRAP);
	must(read(file, ram + CODE, MAILBOX - CODE), image);
	mailbox = (uint32_t *)(ram + MAILBOX);
	gsi = pic ? 10 : 20;
	mailbox[CHIP] = pic;
	mailbox[PIN] = gsi;
	mailbox[VECTOR] = pic ? 0x20 + gsi : 0x40;
	mailbox[REDIRECTION] = mailbox[VECTOR] | 0x8000;
	mailbox[QUIET] = scheme != CEILING;
	mailbox[STATUS] = BAR + 4 * DEVICE_CAUSE;
	mailbox[ACKNOWLEDGE] = BAR + 4 * DEVICE_ACK;
	vcpu = must(ioctl(vm, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
	run = mmap(NULL, must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE"), PROT_READ | PROT_WRITE,
		   MAP_SHARED, vcpu, 0);
	if (run == MAP_FAILED)
		die("mmap of the vCPU");
	unreal_mode();
}

static void wire(void)
{
	pthread_t thread;

	if (scheme == IRQFD)
		irqfd(trigger, unmask_fd, 0);
	else if (scheme == SPLIT)
		irqfd(trigger, -1, 0);
	else if (scheme == ACK_EVENTFD) {
		ack_fd = must(eventfd(0, EFD_NONBLOCK), "eventfd");
		irqfd(must(eventfd(0, EFD_NONBLOCK), "eventfd"), ack_fd, 0);
	}
	if (scheme == ACK_EVENTFD || scheme == TRAP)
		if (pthread_create(&thread, NULL, vmm_thread, NULL))
			die("thread");
}

static void ceiling(long ms)
{
	uint32_t runs = mailbox[HANDLER_RUNS];
	uint64_t answer[2], began = now();

	irqfd(trigger, trigger, 0);
	signal_fd(trigger);
	usleep(ms * 1000);
	answer[0] = mailbox[HANDLER_RUNS] - runs;
	answer[1] = now() - began;
	irqfd(trigger, -1, KVM_IRQFD_FLAG_DEASSIGN);
	drain(trigger);
	must(write(1, answer, sizeof(answer)), "stdout");
}

static void race(long count)
{
	uint64_t *trips = calloc(count, 8);

	for (long i = 0; i < count; i++)
		trips[i] = round_trip(2000);
	settle();
	for (long done = 0; done < count * 8;)
		done += must(write(1, (char *)trips + done, count * 8 - done), "stdout");
	free(trips);
}

int main(int argc, char **argv)
{
	static const char *const names[] = { "irqfd", "ack-eventfd", "split", "trap", "ceiling" };
	char request[64];
	pthread_t thread;
	long number;

	if (argc != 4)
		return 2;
	while (strcmp(argv[1], names[scheme]))
		if (++scheme > CEILING)
			return 2;
	build(argv[3], !strcmp(argv[2], "pic"));
	trigger = must(eventfd(0, EFD_NONBLOCK), "eventfd");
	unmask_fd = must(eventfd(0, EFD_NONBLOCK), "eventfd");
	if (pthread_create(&thread, NULL, vcpu_thread, NULL))
		die("thread");
	while (mailbox[READY] != 0x58544e49)
		usleep(100);
	wire();
	/* As the Python side does: see whether EOIs reach userspace by themselves, else let the guest help. */
	for (int i = 0; scheme == SPLIT && i < 5 && !mailbox[NUDGE]; i++)
		mailbox[NUDGE] = !round_trip(50);
	while (fgets(request, sizeof(request), stdin)) {
		if (sscanf(request, "race %ld", &number) == 1)
			race(number);
		else if (sscanf(request, "run %ld", &number) == 1)
			ceiling(number);
	}
	return 0;
}
