/*
 * The guest of the micro VM: one interrupt line, one handler, and a mailbox that the host reads and writes.
 *
 * 16-bit code with data segments of 4 GiB ("unreal mode", set up by the host before the first instruction), so that
 * it reaches the IOAPIC and the LAPIC by plain moves and also runs where KVM emulates every instruction of real mode.
 *
 * Built into line.bin by:
 *   as --32 -o line.o line.S && ld -m elf_i386 -Ttext 0x1000 -e start --oformat binary -o line.bin line.o
 * The mailbox words are named in vfio_intx/microvm/guest/__init__.py; both lists must agree (a test compares them).
 */
        .intel_syntax noprefix
        .code16

        .set    IOAPIC,         0xfec00000
        .set    LAPIC,          0xfee00000
        .set    DOORBELL_VECTOR, 0x50
        .set    NUDGE_VECTOR,   0x51
        .set    FAULT_PORT,     0xf4
        .set    READY_MARK,     0x58544e49

        /* Words that the host writes. */
        .set    CHIP,           0x2000          /* 0: IOAPIC, 1: PIC */
        .set    PIN,            0x2004
        .set    VECTOR,         0x2008
        .set    REDIRECTION,    0x200c          /* low half of the IOAPIC entry, with the vector */
        .set    QUIET,          0x2010          /* how to quiet the device: see "quiet" below */
        .set    STATUS,         0x2014          /* address of the cause register */
        .set    ACKNOWLEDGE,    0x2018          /* address of the acknowledge register */
        .set    STATUS_2,       0x201c          /* the same two of a second device on the line, QUIET 4 */
        .set    ACKNOWLEDGE_2,  0x2020
        .set    HOLD,           0x2024          /* 1: wait before quieting, 2: wait between quieting and EOI */
        .set    COMMAND,        0x2028          /* 1: mask the pin, 2: unmask it; taken up at the doorbell */

        .set    NUDGE,          0x202c          /* 1: send an IPI to oneself after the EOI; see "nudge" below */

        /* Words that the guest writes, on other cache lines. */
        .set    READY,          0x2080
        .set    HANDLER_RUNS,   0x2084
        .set    IDLE_RUNS,      0x2088          /* handler runs that found nothing to do */
        .set    STRAYS,         0x208c          /* interrupts on vectors nobody asked for */
        .set    HELD,           0x2090          /* the hold that it waits in, 0: none */
        .set    CAUSE,          0x2094          /* what the last read of STATUS gave */
        .set    CAUSE_2,        0x2098
        .set    DOORBELLS,      0x209c          /* commands done */
        .set    HANDLER_ENDS,   0x20a0          /* handler runs whose EOI is done, and heard of by whoever KVM tells */

        .globl  start
start:
        cld
        /* Vectors 0-31 are faults of this program, the rest are strays until somebody claims them. */
        xor     di, di
        mov     cx, 32
        mov     ax, offset fault
        call    fill_vectors
        mov     cx, 224
        mov     ax, offset stray
        call    fill_vectors
        mov     word ptr [0x2f * 4], offset spurious_slave
        movzx   ebx, byte ptr [VECTOR]
        mov     word ptr [ebx * 4], offset line
        mov     word ptr [DOORBELL_VECTOR * 4], offset doorbell
        mov     word ptr [NUDGE_VECTOR * 4], offset nudged

        /* Both PICs: vectors 0x20 and 0x28, everything masked. An unprogrammed PIC would deliver vector 2. */
        mov     al, 0x11
        out     0x20, al
        out     0xa0, al
        mov     al, 0x20
        out     0x21, al
        mov     al, 0x28
        out     0xa1, al
        mov     al, 4
        out     0x21, al
        mov     al, 2
        out     0xa1, al
        mov     al, 1
        out     0x21, al
        out     0xa1, al
        mov     al, 0xff
        out     0x21, al
        out     0xa1, al

        /* LAPIC on, spurious vector 0xff; LINT0 takes the PIC only where the PIC is used. */
        mov     ebx, LAPIC
        mov     dword ptr [ebx + 0xf0], 0x1ff
        mov     eax, 0x10700
        cmp     byte ptr [CHIP], 0
        je      1f
        mov     eax, 0x700
1:      mov     dword ptr [ebx + 0x350], eax
        call    program_level
        call    unmask_pin
        mov     dword ptr [READY], READY_MARK
        sti
idle:   hlt
        jmp     idle

        /* cx vectors from es:di on: segment 0, offset ax. */
fill_vectors:
        mov     word ptr [di], ax
        mov     word ptr [di + 2], 0
        add     di, 4
        dec     cx
        jnz     fill_vectors
        ret

        /* The pin's destination, or its level bit in the PICs' ELCR. */
program_level:
        cmp     byte ptr [CHIP], 0
        jne     1f
        mov     ebx, IOAPIC
        mov     eax, dword ptr [PIN]
        lea     eax, [eax * 2 + 0x11]
        mov     dword ptr [ebx], eax
        mov     dword ptr [ebx + 0x10], 0
        ret
1:      mov     cl, byte ptr [PIN]
        mov     ax, 1
        shl     ax, cl
        mov     dx, 0x4d0
        out     dx, al
        mov     al, ah
        inc     dx
        out     dx, al
        ret

mask_pin:
        cmp     byte ptr [CHIP], 0
        jne     1f
        mov     ecx, dword ptr [REDIRECTION]
        or      ecx, 0x10000
        jmp     write_redirection
1:      mov     al, 0xff
        out     0x21, al
        out     0xa1, al
        ret

unmask_pin:
        cmp     byte ptr [CHIP], 0
        jne     1f
        mov     ecx, dword ptr [REDIRECTION]
        jmp     write_redirection
1:      mov     cl, byte ptr [PIN]
        mov     ax, 1
        shl     ax, cl
        or      al, 4                   /* the cascade */
        not     ax
        out     0x21, al
        mov     al, ah
        out     0xa1, al
        ret

write_redirection:
        mov     ebx, IOAPIC
        mov     eax, dword ptr [PIN]
        lea     eax, [eax * 2 + 0x10]
        mov     dword ptr [ebx], eax
        mov     dword ptr [ebx + 0x10], ecx
        ret

        /* The handler under test. */
line:
        push    eax
        push    ebx
        inc     dword ptr [HANDLER_RUNS]
        test    byte ptr [HOLD], 1
        jnz     hold_before
quiet:
        /* QUIET 1, the model device: copy the cause, a sequence number, into the acknowledge register. */
        cmp     byte ptr [QUIET], 1
        jne     quiet_other
        mov     ebx, dword ptr [STATUS]
        mov     eax, dword ptr [ebx]
        cmp     eax, dword ptr [CAUSE]
        je      nothing
        mov     dword ptr [CAUSE], eax
        mov     ebx, dword ptr [ACKNOWLEDGE]
        mov     dword ptr [ebx], eax
quieted:
        test    byte ptr [HOLD], 2
        jnz     hold_after
eoi:
        cmp     byte ptr [CHIP], 0
        jne     1f
        mov     ebx, LAPIC
        mov     dword ptr [ebx + 0xb0], 0
        inc     dword ptr [HANDLER_ENDS]
        cmp     byte ptr [NUDGE], 0
        jne     nudge
        pop     ebx
        pop     eax
        iret
1:      mov     al, 0x20
        cmp     byte ptr [PIN], 8
        jb      2f
        out     0xa0, al
2:      out     0x20, al
        inc     dword ptr [HANDLER_ENDS]
        pop     ebx
        pop     eax
        iret

        /*
         * Some backends that emulate the guest take note of an EOI that userspace has to hear of, but do not leave
         * the guest for it before the next event. An interrupt is one, and this one goes to nobody.
         */
nudge:
        mov     dword ptr [ebx + 0x300], 0x40000 + NUDGE_VECTOR
        pop     ebx
        pop     eax
        iret

nudged:
        push    ebx
        mov     ebx, LAPIC
        mov     dword ptr [ebx + 0xb0], 0
        pop     ebx
        iret

nothing:
        inc     dword ptr [IDLE_RUNS]
        jmp     quieted

quiet_other:
        cmp     byte ptr [QUIET], 0     /* 0: leave the device alone */
        je      quieted
        mov     ebx, dword ptr [STATUS]
        mov     eax, dword ptr [ebx]
        cmp     byte ptr [QUIET], 4
        je      quiet_two
        mov     dword ptr [CAUSE], eax
        test    eax, eax
        jz      nothing
        cmp     byte ptr [QUIET], 2     /* 2: reading the cause was enough */
        je      quieted
        mov     ebx, dword ptr [ACKNOWLEDGE]
        mov     dword ptr [ebx], eax    /* 3: write the cause back */
        jmp     quieted

        /* QUIET 4: two model devices on the line. */
quiet_two:
        push    ecx
        mov     ebx, dword ptr [STATUS_2]
        mov     ecx, dword ptr [ebx]
        cmp     eax, dword ptr [CAUSE]
        jne     1f
        cmp     ecx, dword ptr [CAUSE_2]
        jne     1f
        inc     dword ptr [IDLE_RUNS]
1:      mov     dword ptr [CAUSE], eax
        mov     dword ptr [CAUSE_2], ecx
        mov     ebx, dword ptr [ACKNOWLEDGE]
        mov     dword ptr [ebx], eax
        mov     ebx, dword ptr [ACKNOWLEDGE_2]
        mov     dword ptr [ebx], ecx
        pop     ecx
        jmp     quieted

hold_before:
        mov     byte ptr [HELD], 1
1:      pause
        test    byte ptr [HOLD], 1
        jnz     1b
        mov     byte ptr [HELD], 0
        jmp     quiet

hold_after:
        mov     byte ptr [HELD], 2
1:      pause
        test    byte ptr [HOLD], 2
        jnz     1b
        mov     byte ptr [HELD], 0
        jmp     eoi

        /* An MSI of the host: do COMMAND. */
doorbell:
        push    eax
        push    ebx
        push    ecx
        cmp     byte ptr [COMMAND], 1
        jne     1f
        call    mask_pin
        jmp     2f
1:      cmp     byte ptr [COMMAND], 2
        jne     2f
        call    unmask_pin
2:      inc     dword ptr [DOORBELLS]
        mov     ebx, LAPIC
        mov     dword ptr [ebx + 0xb0], 0
        pop     ecx
        pop     ebx
        pop     eax
        iret

        /* A level that went away while the slave PIC was being asked: the master has the cascade in service. */
spurious_slave:
        push    eax
        mov     al, 0x20
        out     0x20, al
        pop     eax
stray:
        inc     dword ptr [STRAYS]
        iret

        /* Tell the host by an exit that it does not expect, with the registers as they are. */
fault:
        out     FAULT_PORT, al
        hlt
        jmp     fault
